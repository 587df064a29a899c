"""Supervisor: starts processes in stages, restarts those that end, drains them in reverse order."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from enum import IntEnum, StrEnum
from http import HTTPStatus
from pathlib import Path
from typing import Any

from workers.home import Home, read_json, write_private
from workers.stack.guardian import OrphanGuardian
from workers.stack.process import Command, Identity, end_all, spawn

TICK_S = 0.05
BACKOFF_FIRST_S = 0.2
BACKOFF_CAP_S = 30.0
START_LIMIT_S = 300.0
"""A process that is not ready this long after its start is ended and restarted."""
STABLE_S = 20.0
"""A process's failures no longer count once it has been ready for this long."""
MAX_START_FAILURES = 4
"""Consecutive failures of a process that was never ready, after which the start fails."""
STOP_TIMEOUT_S = 30.0
"""For the drain of one stage; FORCED_STOP_S after a second signal."""
FORCED_STOP_S = 3.0


class StartError(RuntimeError):
    """A process did not become ready; the message names it and its log."""


class Stage(IntEnum):
    """Order of the start; the drain has the reverse order."""

    DATABASE = 0
    BROKER = 1
    CONTROL = 2
    WORKERS = 3


class ProcessState(StrEnum):
    """State of a supervised process."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """A process to keep running.

    `prepare` is called before each start and returns the command; `ready` is polled after it.
    """

    name: str
    stage: Stage
    prepare: Callable[[], Command]
    ready: Callable[[], bool]
    lanes: tuple[str, ...] = ()
    address: Callable[[], str] = str


@dataclass(slots=True)
class SupervisedProcess:
    """Current state of a process."""

    spec: ProcessSpec
    state: ProcessState = ProcessState.WAITING
    process: subprocess.Popen[bytes] | None = None
    command: Command | None = None
    identity: Identity | None = None
    restarts: int = 0
    failures: int = 0
    ever_ready: bool = False
    since: float = field(default_factory=time.monotonic)
    retry_at: float = 0.0
    last_error: str = ""

    def document(self) -> dict[str, Any]:
        """For the state file and `--json`."""
        return {
            "name": self.spec.name,
            "pid": self.identity.pid if self.identity else None,
            "state": str(self.state),
            "restarts": self.restarts,
            "lanes": list(self.spec.lanes),
            "address": self.spec.address(),
            "log": str(self.command.log) if self.command else None,
            "identity": asdict(self.identity) if self.identity else None,
        }


class Supervisor:
    """Runs processes until it is signalled to drain.

    Args:
        home: created and locked by the caller.
        specs: of the processes.
        prepare_stage: called once, when the stages before CONTROL are ready.
        watch: called every TICK_S.
        isolation: why roles do not have their own accounts; empty if they have.
        notify: gets a line whenever a process ends or is ready again.
    """

    def __init__(
        self,
        home: Home,
        specs: Sequence[ProcessSpec],
        *,
        prepare_stage: Callable[[], object] = lambda: None,
        watch: Callable[[], object] = lambda: None,
        isolation: str = "",
        notify: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.home = home
        self.children = [
            SupervisedProcess(spec) for spec in sorted(specs, key=lambda spec: spec.stage)
        ]
        self.guardian = OrphanGuardian(home)
        self.ready = False
        self._prepare_stage = prepare_stage
        self._watch = watch
        self._isolation = isolation
        self._notify = notify
        self._signals = 0
        self._written: str = ""
        self._last_error: str = ""

    def catch_signals(self) -> None:
        """Drain on SIGINT, SIGTERM and SIGHUP; a second signal shortens the drain."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    @property
    def draining(self) -> bool:
        """Whether a signal to drain has arrived."""
        return self._signals > 0

    def start(self, timeout_s: float = 300.0) -> None:
        """Start all processes, and return once they are ready or a signal to drain has arrived.

        Raises:
            StartError: a process failed repeatedly, or `timeout_s` passed.
        """
        end_orphans(self.home)
        self.guardian.ensure()
        until = time.monotonic() + timeout_s
        self._await_ready([c for c in self.children if c.spec.stage < Stage.CONTROL], until)
        if not self.draining:
            self._prepare_stage()
            self._await_ready(self.children, until)
        self.ready = not self.draining
        self._write_state()

    def run(self) -> None:
        """Restart processes that end, until a signal to drain arrives."""
        while not self.draining:
            self.tick(self.children)
            time.sleep(TICK_S)

    def drain(self) -> None:
        """End all processes, the last stage first. Safe at any time, also after a failed start."""
        self.ready = False
        for stage in sorted(Stage, reverse=True):
            self._end([child for child in self.children if child.spec.stage == stage])
        self.guardian.close()
        self._write_state()

    def tick(self, children: Sequence[SupervisedProcess]) -> None:
        """Ensure the guardian, and advance each process by one step.

        An OSError, such as of an incomplete key ring or a full disk, ends nothing: it is reported once
        and the step is repeated.
        """
        try:
            if self.guardian.ensure():
                self._notify("the guardian ended and was replaced")
            self._watch()
            self._last_error = ""
        except OSError as error:
            if str(error) != self._last_error:
                self._last_error = str(error)
                self._notify(f"{error}; retrying")
        for child in children:
            self._step(child)
        with suppress(OSError):
            self._write_state()

    def _await_ready(self, children: Sequence[SupervisedProcess], until: float) -> None:
        while (
            not all(child.state is ProcessState.READY for child in children) and not self.draining
        ):
            self.tick(children)
            for child in children:
                if not child.ever_ready and child.failures >= MAX_START_FAILURES:
                    raise StartError(self._start_problem(child, "does not start"))
                if child.state is not ProcessState.READY and time.monotonic() > until:
                    raise StartError(self._start_problem(child, "was not ready in time"))
            time.sleep(TICK_S)

    def _start_problem(self, child: SupervisedProcess, what: str) -> str:
        log = child.command.log if child.command else self.home.logs
        cause = f": {child.last_error}" if child.last_error else ""
        return f"{child.spec.name} {what}{cause}; see {log}"

    def _step(self, child: SupervisedProcess) -> None:
        now = time.monotonic()
        if child.process is not None and child.process.poll() is not None:
            self._on_exit(child, _exit_description(child.process.returncode))
        elif child.state is ProcessState.WAITING and now >= child.retry_at:
            self._start(child)
        elif child.state is ProcessState.STARTING and child.spec.ready():
            if child.restarts:
                self._notify(f"{child.spec.name} is ready again")
            child.state, child.since, child.ever_ready = ProcessState.READY, now, True
        elif child.state is ProcessState.STARTING and now - child.since > START_LIMIT_S:
            child.last_error = "it was not ready in time"
            if child.identity and child.command:
                child.identity.signal(child.command.kill_signal)
        elif child.state is ProcessState.READY and child.failures and now - child.since > STABLE_S:
            child.failures = 0

    def _start(self, child: SupervisedProcess) -> None:
        try:
            child.command = child.spec.prepare()
            child.process = spawn(child.command)
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            child.last_error = str(error)
            self._on_exit(child, f"could not be started: {error}")
            return
        child.state, child.last_error, child.since = ProcessState.STARTING, "", time.monotonic()
        child.identity = Identity.of(child.process.pid, child.command.kill_signal)
        if child.identity:
            self.guardian.add(child.identity)

    def _on_exit(self, child: SupervisedProcess, description: str) -> None:
        self._clear(child, ProcessState.WAITING)
        child.failures += 1
        child.restarts += 1
        # The first restart has a short delay: nearly always it is the only one.
        delay = min(BACKOFF_CAP_S, BACKOFF_FIRST_S * 2 ** (child.failures - 1))
        delay *= random.uniform(0.75, 1.25)  # noqa: S311 - spreads restarts, guards nothing
        child.retry_at = time.monotonic() + delay
        self._notify(f"{child.spec.name} {description}; restarting it in {delay:.1f} s")

    def _clear(self, child: SupervisedProcess, state: ProcessState) -> None:
        if child.process is not None:
            self.guardian.remove(child.process.pid)
        child.state, child.process, child.identity = state, None, None

    def _end(self, children: Sequence[SupervisedProcess]) -> None:
        """End the processes of one stage together: in order, after the timeout by force."""
        for child in children:
            if child.process is None or child.command is None:
                child.state = ProcessState.STOPPED
            else:
                child.state = ProcessState.STOPPING
                child.process.send_signal(child.command.stop_signal)
        self._write_state()
        began, killed_at = time.monotonic(), 0.0
        while running := [c for c in children if c.process is not None]:
            for child in running:
                if child.process is not None and child.process.poll() is not None:
                    self._clear(child, ProcessState.STOPPED)
            now = time.monotonic()
            if now - began > (FORCED_STOP_S if self._signals > 1 else STOP_TIMEOUT_S):
                for child in running:
                    if child.identity and child.command:
                        child.identity.signal(
                            signal.SIGKILL
                            if killed_at and now - killed_at > FORCED_STOP_S
                            else child.command.kill_signal
                        )
                killed_at = killed_at or now
            time.sleep(TICK_S)

    def _on_signal(self, _number: int, _frame: object) -> None:
        self._signals += 1

    def document(self) -> dict[str, Any]:
        """All processes and their states, for the state file and `--json`."""
        own = Identity.of(os.getpid())
        return {
            "home": str(self.home.path),
            "ready": self.ready,
            "supervisor": asdict(own) if own else None,
            "guardian": self.guardian.pid,
            "one_account": self._isolation,
            "processes": [child.document() for child in self.children],
        }

    def _write_state(self) -> None:
        text = json.dumps(self.document())
        if text != self._written:
            write_private(self.home.state, text)
            self._written = text


def end_orphans(home: Home) -> int:
    """End the processes that a killed supervisor left running; the caller holds the home's lock.

    Returns:
        The number of those processes.
    """
    orphans = []
    for process in read_json(home.state).get("processes", []):
        with suppress(KeyError, TypeError):
            orphans.append(Identity(**process["identity"]))
    orphans = [orphan for orphan in orphans if orphan.alive()]
    end_all(orphans, timeout_s=5.0)
    return len(orphans)


def ready_file(path: Path) -> Callable[[], bool]:
    """Readiness check of a process that touches its VESTRY_READY_FILE."""
    return path.exists


def http_ready(url: Callable[[], str]) -> Callable[[], bool]:
    """Readiness check of a process that serves a URL on loopback."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ready() -> bool:
        try:
            with opener.open(url(), timeout=2) as response:
                return bool(response.status == HTTPStatus.OK)
        except OSError:  # urllib's errors are among these
            return False

    return ready


def _exit_description(code: int) -> str:
    """Description of a return code."""
    if code < 0:
        with suppress(ValueError):
            return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
