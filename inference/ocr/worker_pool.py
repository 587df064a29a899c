"""The child processes of one backend: each answers one request at a time, and can be lost.

Made by hand and not by a process pool, because of what is behind the wall: these processes open files
that strangers made. They get an environment built from nothing, where a pool's would inherit database
logins and keys; they answer in JSON, where a pool would unpickle whatever they send; and each is
killed together with the Tesseract that it runs.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from inference.errors import BackendUnavailable
from inference.ocr.config import Setup
from inference.ocr.ipc import ConnectionClosed, ReplyTimeout, receive, send

WORKER_COMMAND: Final = (sys.executable, "-P", "-m", "inference.ocr.worker_main")
"""What is run, before its setup."""
START_S: Final = 60.0
"""Seconds that an interpreter may take to start on a machine that has other things to do."""
CLOSE_S: Final = 5.0
"""Seconds in which threads notice that their child was killed."""
REQUESTS: Final = 200
"""After so many a child is replaced: what decoders leak goes with it."""

_CHECKOUT: Final = Path(__file__).resolve().parents[2]
_INHERITED: Final = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TZ")
"""All that a child gets of our environment: where libraries are."""


class OcrWorker:
    """One process, in a session and a directory of its own.

    Args:
        command: what to run, without the setup.
        setup: what it is told.
        directory: for its temporary files, and removed with it.

    Raises:
        Unavailable: it does not start.
    """

    def __init__(self, command: Sequence[str], setup: Setup, directory: Path) -> None:
        self.requests = 0
        self._directory = directory
        environment = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        environment |= {
            "LANG": "C.UTF-8",
            "PATH": os.defpath,
            "PYTHONPATH": str(_CHECKOUT),
            "TMPDIR": str(directory),
        }
        try:
            self._process = subprocess.Popen(
                [*command, setup.to_json()],
                cwd=directory,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                bufsize=0,
            )
        except OSError:
            shutil.rmtree(directory, ignore_errors=True)
            raise BackendUnavailable("a process to read pages cannot be started") from None
        try:
            self._receive(START_S)
        except (ConnectionClosed, ReplyTimeout):
            self.end()
            raise BackendUnavailable("the process that reads pages does not start") from None

    @property
    def pid(self) -> int:
        """Its process id, which is its group's too."""
        return self._process.pid

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Have a request answered.

        Raises:
            Closed: it died.
            Late: it did not answer in time.
        """
        self.requests += 1
        assert self._process.stdin is not None  # noqa: S101 - a pipe, see above
        send(self._process.stdin.fileno(), request)
        return self._receive(seconds)

    def kill(self) -> None:
        """Kill it and what it runs; whoever waits for its answer is told so."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def end(self) -> None:
        """Kill it and what it runs, and remove its files."""
        self.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _receive(self, seconds: float) -> dict[str, Any]:
        assert self._process.stdout is not None  # noqa: S101 - a pipe, see above
        return receive(self._process.stdout.fileno(), seconds)


class OcrWorkerPool:
    """So many children, each started when it is first needed. Threads share them.

    Args:
        start: starts one.
        count: how many there may be.
    """

    def __init__(self, start: Callable[[], OcrWorker], count: int) -> None:
        self.count = count
        self._start = start
        self._free = count
        self._idle: list[OcrWorker] = []
        self._busy: set[OcrWorker] = set()
        self._condition = threading.Condition()
        self._line: list[tuple[bool, int]] = []
        self._numbers = itertools.count()
        self._closed = False

    def ask(
        self, request: dict[str, Any], seconds: float, *, urgent: bool = False
    ) -> dict[str, Any]:
        """Have a request answered by the next child that is free; the urgent ones go first.

        Args:
            request: see `inference.ocr.worker_main`.
            seconds: after which the child is killed; waiting for one does not count.
            urgent: someone waits.

        Raises:
            Closed: the child died; another takes its place.
            Late: the time is over, and the child killed.
            Unavailable: none can be started, or all are being ended.
        """
        with self._turn(urgent=urgent):
            child = self._take()
            try:
                answer = child.ask(request, seconds)
            except BaseException:
                self._lose(child)
                raise
            self._give_back(child)
            return answer

    def close(self) -> None:
        """End all of them, those that read a page too. Safe to repeat."""
        with self._condition:
            self._closed = True
            idle, self._idle = self._idle, []
            for child in self._busy:
                child.kill()  # ended by the thread that waits for it
        for child in idle:
            child.end()
        with self._condition:
            self._condition.wait_for(
                lambda: self._free == self.count and not self._line, timeout=CLOSE_S
            )

    @contextlib.contextmanager
    def _turn(self, *, urgent: bool) -> Iterator[None]:
        ticket = (not urgent, next(self._numbers))
        with self._condition:
            heapq.heappush(self._line, ticket)
            try:
                self._condition.wait_for(lambda: self._free > 0 and self._line[0] == ticket)
                self._free -= 1
            finally:
                self._line.remove(ticket)
                heapq.heapify(self._line)
                self._condition.notify_all()
        try:
            yield
        finally:
            with self._condition:
                self._free += 1
                self._condition.notify_all()

    def _take(self) -> OcrWorker:
        with self._condition:
            child = self._idle.pop() if self._idle else None
            closed = self._closed
        if child is None and not closed:
            child = self._start()
        with self._condition:
            if child is not None and not self._closed:
                self._busy.add(child)
                return child
        if child is not None:
            child.end()
        raise BackendUnavailable("the processes that read pages are being ended")

    def _give_back(self, child: OcrWorker) -> None:
        with self._condition:
            if not self._closed and child.requests < REQUESTS:
                self._busy.discard(child)
                self._idle.append(child)
                return
        self._lose(child)

    def _lose(self, child: OcrWorker) -> None:
        with self._condition:
            self._busy.discard(child)  # before its id can become another process's
        child.end()
