"""Checks of the embedded stack, from the state file that its supervisor writes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vestry.cli.doctor.checks import Check
from vestry.settings import home

READY = "ready"


def stack_checks() -> Iterator[Check]:
    """The supervisor, its processes and their isolation; one check if no embedded stack is used."""
    directory = home()
    if os.environ.get("VESTRY_DATABASE_URL"):
        yield Check("stack", True, "not used: VESTRY_DATABASE_URL is set")
        return
    state = _read_json(directory / "run" / "state.json")
    pid = (state.get("supervisor") or {}).get("pid")
    if not isinstance(pid, int) or not _alive(pid):
        yield Check("stack", False, f"not running in {directory}; `vestry up` starts it")
        return
    ready = bool(state.get("ready"))
    detail = f"supervisor {pid} in {directory}"
    yield Check("stack", ready, detail if ready else f"{detail}: not every process is ready yet")
    for process in state.get("processes", ()):
        yield _process_check(process)
    yield _isolation_check(state)


def _process_check(process: dict[str, Any]) -> Check:
    name, state, pid = process.get("name"), process.get("state"), process.get("pid")
    alive = state == READY and isinstance(pid, int) and _alive(pid)
    parts = [f"{state}, pid {pid}"]
    if lanes := process.get("lanes"):
        parts.append("serves " + ", ".join(lanes))
    if restarts := process.get("restarts"):
        parts.append(f"restarted {restarts} times")
    if not alive and process.get("log"):
        parts.append(f"see {process['log']}")
    return Check(f"process {name}", alive, "; ".join(parts))


def _isolation_check(state: dict[str, Any]) -> Check:
    """Whether the operating system isolates private, shareable and cloud workers from each other."""
    accounts: dict[str, set[int]] = {}
    for process in state.get("processes", ()):
        lanes, pid = process.get("lanes"), process.get("pid")
        if lanes and isinstance(pid, int) and (user := _account_of(pid)) is not None:
            privacy, _, pool = lanes[0].split(".")
            accounts.setdefault("cloud" if pool == "cloud" else privacy, set()).add(user)
    users = [user for users_of_class in accounts.values() for user in users_of_class]
    if not users:
        return Check("isolation", True, "no workers run here")
    if len(accounts) > 1 and len(set(users)) == len(users) and os.geteuid() not in users:
        return Check(
            "isolation", True, f"{_listed(accounts)} workers run under accounts of their own"
        )
    reason = state.get("one_account") or "see docs/privacy.md"
    return Check(
        "isolation",
        True,
        f"NOT isolated: {_listed(accounts)} workers run under one account and could read each other's "
        f"files and memory ({reason}); started by root they get accounts of their own, in containers "
        "(compose.yaml) also networks of their own",
    )


def _listed(accounts: dict[str, set[int]]) -> str:
    *others, last = sorted(accounts)
    return f"{', '.join(others)} and {last}" if others else last


def _account_of(pid: int) -> int | None:
    """A process's real user id, from its status: if it is not dumpable, root owns the file itself."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return None
    line = next((line for line in status.splitlines() if line.startswith("Uid:")), "")
    return int(line.split()[1]) if line else None


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}
