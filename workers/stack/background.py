"""The stack in the background: started, inspected and stopped from another process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from workers.home import CHECKOUT, Home, HomeInUseError, default_home, read_json
from workers.stack.process import Identity, base_environment, open_log
from workers.stack.settings import inherited_environment
from workers.stack.supervisor import StartError, end_orphans

STOP_TIMEOUT_S = 150.0
"""Longer than a drain in which every stage is ended by force."""


@dataclass(slots=True)
class BackgroundStack:
    """A stack in the background. As a context manager it is stopped at the end."""

    home: Path
    supervisor: Identity
    process: subprocess.Popen[bytes] | None = None

    @property
    def client(self) -> dict[str, Any]:
        """The client file: `database_url`, `keyring`, `flower`, `supervisor_pid`, …."""
        return read_json(Home(self.home).client)

    def state(self) -> dict[str, Any]:
        """The state file: `ready`, each process's name, pid, state, restarts, lanes, address, log."""
        return read_json(Home(self.home).state)

    def pid(self, name: str) -> int | None:
        """The current id of a process, by its name (`postgres`, `private-bulk-gpu`, …)."""
        pids = [p["pid"] for p in self.state().get("processes", []) if p["name"] == name]
        return pids[0] if pids else None

    def running(self) -> bool:
        """Whether its supervisor runs."""
        return self.supervisor.alive()

    def stop(self) -> None:
        """Drain it, and return once all of its processes have ended. Safe to repeat.

        Raises:
            TimeoutError: it did not end within STOP_TIMEOUT_S.
        """
        if self.running():
            os.kill(self.supervisor.pid, signal.SIGTERM)
        until = time.monotonic() + STOP_TIMEOUT_S
        while self.running():
            if time.monotonic() > until:
                raise TimeoutError(
                    f"the supervisor (pid {self.supervisor.pid}) has not ended within "
                    f"{STOP_TIMEOUT_S:.0f} s; stop it again to shorten the drain"
                )
            time.sleep(0.05)
        if self.process is not None:
            self.process.wait()
        sweep(self.home)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def start_background(
    home: Path | None = None,
    settings: Mapping[str, str] | None = None,
    *,
    flower: bool = True,
    only: Sequence[str] = (),
    timeout_s: float = 300.0,
    module: str = "workers.stack.commands",
) -> BackgroundStack:
    """Start the stack in the background, and return once every process is ready.

    Args:
        home: its data directory; VESTRY_HOME or `.vestry/` by default.
        settings: `VESTRY_*` settings of every process; they override those of the environment.
        flower: whether to run Flower.
        only: names of the processes to run besides the servers; empty means all.
        timeout_s: for all processes to be ready.
        module: the module whose `up` runs the stack.

    Raises:
        StartError: it did not start, and its processes have ended. The message is one line.
    """
    directory = Home(home or default_home())
    directory.create()
    argv = [sys.executable, "-m", module, "up", "--home", str(directory.path)]
    argv += ["--flower" if flower else "--no-flower", "--timeout", str(timeout_s)]
    argv += [part for name in only for part in ("--only", name)]
    argv += [part for pair in (settings or {}).items() for part in ("--set", "=".join(pair))]
    path = directory.logs / "supervisor.log"
    path.unlink(missing_ok=True)
    try:
        environment = base_environment() | inherited_environment()
    except ValueError as error:
        raise StartError(str(error)) from None
    with open_log(path) as log:
        process = subprocess.Popen(
            argv,
            env=environment,
            cwd=CHECKOUT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        supervisor = _await_ready(process, directory)
    except BaseException:
        process.terminate()
        process.wait(STOP_TIMEOUT_S)
        raise
    return BackgroundStack(directory.path, supervisor, process)


def running_in(home: Path) -> BackgroundStack | None:
    """The stack that runs in a home, in the foreground or background."""
    recorded = read_json(Home(home).state).get("supervisor")
    if not recorded:
        return None
    stack = BackgroundStack(home, Identity(**recorded))
    return stack if stack.running() else None


def sweep(home: Path) -> int:
    """End the processes that a killed supervisor left running in a home.

    Returns:
        The number of those processes; 0 if a supervisor runs.
    """
    directory = Home(home)
    if not directory.run.is_dir():
        return 0
    try:
        directory.lock()
    except HomeInUseError:
        return 0
    try:
        directory.client.unlink(missing_ok=True)
        return end_orphans(directory)
    finally:
        directory.unlock()


def _await_ready(process: subprocess.Popen[bytes], home: Home) -> Identity:
    # The supervisor enforces the timeout itself, and ends with an error.
    while process.poll() is None:
        state = read_json(home.state)
        recorded = state.get("supervisor") or {}
        if state.get("ready") and recorded.get("pid") == process.pid:
            return Identity(**recorded)
        time.sleep(0.05)
    text = (home.logs / "supervisor.log").read_text(encoding="utf-8", errors="replace")
    last = (text.strip().splitlines() or ["the supervisor ended without a message"])[-1]
    raise StartError(last.removeprefix("Error: "))
