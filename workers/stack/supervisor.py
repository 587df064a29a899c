"""Keeps a set of processes running: starts them in stages, restarts what dies, drains in order."""

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
"""A process that is not ready so long after its start is ended, and started again."""
STABLE_S = 20.0
"""A process that has been ready for this long has its failures forgiven."""
MAX_START_FAILURES = 4
"""Failures in a row, without ever having been ready, after which a start is given up."""
STOP_TIMEOUT_S = 30.0
"""For a drain; HURRY_S after a second signal."""
FORCED_STOP_S = 3.0


class StartError(RuntimeError):
    """A process could not be brought to readiness; the message names it and its log."""


class Stage(IntEnum):
    """The order of starting; draining goes the other way round."""

    DATABASE = 0
    BROKER = 1
    CONTROL = 2
    WORKERS = 3


class ProcessState(StrEnum):
    """Where a child is."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """One process to keep running.

    `prepare` is called before each start and may do whatever must come before it; `ready` is asked
    every moment from then on until it says so.
    """

    name: str
    stage: Stage
    prepare: Callable[[], Command]
    ready: Callable[[], bool]
    lanes: tuple[str, ...] = ()
    address: Callable[[], str] = str


@dataclass(slots=True)
class SupervisedProcess:
    """A spec's process, now."""

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
    """Runs children until it is told to drain.

    Args:
        home: created and locked by the caller.
        specs: the children.
        prepare_stage: called once, when the stages before CONTROL are ready.
        watch: called every moment.
        isolation: why children cannot have accounts of their own; empty where they have.
        tell: gets a line whenever a child dies or comes back.
    """

    def __init__(
        self,
        home: Home,
        specs: Sequence[ProcessSpec],
        *,
        prepare_stage: Callable[[], object] = lambda: None,
        watch: Callable[[], object] = lambda: None,
        isolation: str = "",
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.home = home
        self.children = [
            SupervisedProcess(spec) for spec in sorted(specs, key=lambda spec: spec.stage)
        ]
        self.keeper = OrphanGuardian(home)
        self.ready = False
        self._prepare_stage = prepare_stage
        self._watch = watch
        self._isolation = isolation
        self._tell = tell
        self._signals = 0
        self._written: str = ""
        self._trouble: str = ""

    def catch_signals(self) -> None:
        """Take Ctrl-C, SIGTERM and a closed terminal as requests to drain; a second one hurries."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    @property
    def draining(self) -> bool:
        """Whether it was told to end."""
        return self._signals > 0

    def start(self, timeout_s: float = 300.0) -> None:
        """Bring every child to readiness.

        Returns early when told to drain.

        Raises:
            StartError: a child failed again and again, or `timeout_s` passed.
        """
        end_orphans(self.home)
        self.keeper.ensure()
        until = time.monotonic() + timeout_s
        self._settle([c for c in self.children if c.spec.stage < Stage.CONTROL], until)
        if not self.draining:
            self._prepare_stage()
            self._settle(self.children, until)
        self.ready = not self.draining
        self._write_state()

    def run(self) -> None:
        """Restart what dies, until told to drain."""
        while not self.draining:
            self._tick(self.children)
            time.sleep(TICK_S)

    def drain(self) -> None:
        """End everything, the last stage first. Safe at any moment, also after a failed start."""
        self.ready = False
        for stage in sorted(Stage, reverse=True):
            self._end([child for child in self.children if child.spec.stage == stage])
        self.keeper.close()
        self._write_state()

    def _settle(self, children: Sequence[SupervisedProcess], until: float) -> None:
        while (
            not all(child.state is ProcessState.READY for child in children) and not self.draining
        ):
            self._tick(children)
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

    def _tick(self, children: Sequence[SupervisedProcess]) -> None:
        try:
            if self.keeper.ensure():
                self._tell("the keeper died and was replaced")
            self._watch()
            self._trouble = ""
        except OSError as error:
            # A key ring that is just being written, or a disk that is full: no reason to end all.
            if str(error) != self._trouble:
                self._trouble = str(error)
                self._tell(f"{error}; trying again")
        for child in children:
            self._step(child)
        with suppress(OSError):
            self._write_state()

    def _step(self, child: SupervisedProcess) -> None:
        now = time.monotonic()
        if child.process is not None and child.process.poll() is not None:
            self._on_exit(child, _exit_description(child.process.returncode))
        elif child.state is ProcessState.WAITING and now >= child.retry_at:
            self._start(child)
        elif child.state is ProcessState.STARTING and child.spec.ready():
            if child.restarts:
                self._tell(f"{child.spec.name} is back")
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
            self.keeper.keep(child.identity)

    def _on_exit(self, child: SupervisedProcess, how: str) -> None:
        self._forget(child, ProcessState.WAITING)
        child.failures += 1
        child.restarts += 1
        # The first restart comes at once: nearly always it is the only one.
        delay = min(BACKOFF_CAP_S, BACKOFF_FIRST_S * 2 ** (child.failures - 1))
        delay *= random.uniform(0.75, 1.25)  # noqa: S311 - spreads restarts, guards nothing
        child.retry_at = time.monotonic() + delay
        self._tell(f"{child.spec.name} {how}; starting it again in {delay:.1f} s")

    def _forget(self, child: SupervisedProcess, state: ProcessState) -> None:
        if child.process is not None:
            self.keeper.forget(child.process.pid)
        child.state, child.process, child.identity = state, None, None

    def _end(self, children: Sequence[SupervisedProcess]) -> None:
        """End the children of one stage together: in order, and where that takes long, at once."""
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
                    self._forget(child, ProcessState.STOPPED)
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
        """What runs, for the state file and `--json`."""
        own = Identity.of(os.getpid())
        return {
            "home": str(self.home.path),
            "ready": self.ready,
            "supervisor": asdict(own) if own else None,
            "keeper": self.keeper.pid,
            "one_account": self._isolation,
            "processes": [child.document() for child in self.children],
        }

    def _write_state(self) -> None:
        text = json.dumps(self.document())
        if text != self._written:
            write_private(self.home.state, text)
            self._written = text


def end_orphans(home: Home) -> int:
    """End what a supervisor that was killed left running; the caller holds the home's lock.

    Returns:
        How many there were.
    """
    orphans = []
    for process in read_json(home.state).get("processes", []):
        with suppress(KeyError, TypeError):
            orphans.append(Identity(**process["identity"]))
    orphans = [orphan for orphan in orphans if orphan.alive()]
    end_all(orphans, patience_s=5.0)
    return len(orphans)


def ready_file(path: Path) -> Callable[[], bool]:
    """Readiness of a child that touches the file in its VESTRY_READY_FILE."""
    return path.exists


def http_ready(url: Callable[[], str]) -> Callable[[], bool]:
    """Readiness of a child that answers requests for a URL on loopback."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ready() -> bool:
        try:
            with direct.open(url(), timeout=2) as response:
                return bool(response.status == HTTPStatus.OK)
        except OSError:  # urllib's errors are of this kind
            return False

    return ready


def _exit_description(code: int) -> str:
    """A return code in words."""
    if code < 0:
        with suppress(ValueError):
            return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
