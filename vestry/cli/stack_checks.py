"""What `vestry doctor` can tell of the embedded stack, from the state file its supervisor keeps."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vestry.cli.check import Check
from vestry.settings import home

READY = "ready"


def stack(place: Path | None = None) -> Iterator[Check]:
    """The supervisor and each of its processes; one line where no stack is wanted.

    Args:
        place: the stack's directory; by default the one commands use.
    """
    place = place or home()
    if os.environ.get("VESTRY_DATABASE_URL"):
        yield Check("stack", True, "not used: VESTRY_DATABASE_URL is set")
        return
    state = _read(place / "run" / "state.json")
    pid = (state.get("supervisor") or {}).get("pid")
    if not isinstance(pid, int) or not _alive(pid):
        yield Check("stack", False, f"not running in {place}; `vestry up` starts it")
        return
    ready = bool(state.get("ready"))
    detail = f"supervisor {pid} in {place}"
    yield Check("stack", ready, detail if ready else f"{detail}: not everything is ready yet")
    for process in state.get("processes", ()):
        yield _process(process)
    yield _walls(state)


def _process(process: dict[str, Any]) -> Check:
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


def _walls(state: dict[str, Any]) -> Check:
    """Whether the privacy walls between processes are the system's, or good behaviour only."""
    accounts = set()
    for process in state.get("processes", ()):
        if process.get("lanes") and isinstance(process.get("pid"), int):
            try:
                accounts.add((process["lanes"][0].split(".")[0], _owner(process["pid"])))
            except OSError:
                continue
    users = [user for _, user in accounts]
    if not users:
        return Check("isolation", True, "no workers run here")
    separate = len(set(users)) == len(users) and len(users) > 1
    return Check(
        "isolation",
        True,
        "private and shareable workers run under accounts of their own"
        if separate
        else "private and shareable workers run under one account: its own files and processes do "
        "not keep them apart (containers do: compose.yaml)",
    )


def _owner(pid: int) -> int:
    return Path(f"/proc/{pid}").stat().st_uid


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}
