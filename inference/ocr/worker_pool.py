"""Pool of OCR worker processes: each serves one request at a time and may be killed or crash.

Not a `concurrent.futures` process pool, because these processes open untrusted files. They get an
environment built from nothing, where a standard pool's would inherit database logins and keys; they
reply in JSON, where a standard pool would unpickle any reply; and each is killed together with the
Tesseract that it runs.
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
from inference.ocr.config import WorkerSetup
from inference.ocr.ipc import ConnectionClosed, ReplyTimeout, receive, send

WORKER_COMMAND: Final = (sys.executable, "-P", "-m", "inference.ocr.worker_main")
"""Command line of a worker process, without its setup."""
START_TIMEOUT_S: Final = 60.0
"""Longest start of an interpreter, on a machine that is busy."""
CLOSE_TIMEOUT_S: Final = 5.0
"""Longest wait of `close` for the threads whose worker was killed."""
MAX_REQUESTS: Final = 200
"""A worker is replaced after this many requests, to free the memory that decoders leak."""

_CHECKOUT: Final = Path(__file__).resolve().parents[2]
_INHERITED: Final = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TZ")
"""The only variables that a worker inherits: paths of libraries, and the time zone."""


class OcrWorker:
    """One worker process, in its own session and directory.

    Args:
        command: command line, without the setup.
        setup: its configuration.
        directory: for its temporary files; removed with it.

    Raises:
        BackendUnavailable: it does not start.
    """

    def __init__(self, command: Sequence[str], setup: WorkerSetup, directory: Path) -> None:
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
            raise BackendUnavailable("the OCR process cannot be started") from None
        try:
            self._receive(START_TIMEOUT_S)
        except (ConnectionClosed, ReplyTimeout):
            self.end()
            raise BackendUnavailable("the OCR process does not start") from None

    @property
    def pid(self) -> int:
        """Its process id, which is also its process group's."""
        return self._process.pid

    def call(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Send a request and wait for its reply.

        Raises:
            ConnectionClosed: the process died.
            ReplyTimeout: it did not reply in time.
        """
        self.requests += 1
        assert self._process.stdin is not None  # noqa: S101 - a pipe, see above
        send(self._process.stdin.fileno(), request)
        return self._receive(timeout_s)

    def kill(self) -> None:
        """Kill its process group; a thread in `call` gets ConnectionClosed."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def end(self) -> None:
        """Kill its process group, and remove its files."""
        self.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _receive(self, timeout_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None  # noqa: S101 - a pipe, see above
        return receive(self._process.stdout.fileno(), timeout_s)


class OcrWorkerPool:
    """A fixed number of workers, each started at first use. Threads share them.

    Args:
        start: starts one.
        count: most workers.
    """

    def __init__(self, start: Callable[[], OcrWorker], count: int) -> None:
        self.count = count
        self._start = start
        self._free_slots = count
        self._idle: list[OcrWorker] = []
        self._busy: set[OcrWorker] = set()
        self._condition = threading.Condition()
        self._queue: list[tuple[bool, int]] = []
        self._numbers = itertools.count()
        self._closed = False

    def call(
        self, request: dict[str, Any], timeout_s: float, *, urgent: bool = False
    ) -> dict[str, Any]:
        """Serve a request with the next free worker; urgent requests first.

        Args:
            request: see `inference.ocr.worker_main`.
            timeout_s: after it the worker is killed; waiting for a free one does not count.
            urgent: of an interactive job.

        Raises:
            ConnectionClosed: the worker died; another one replaces it.
            ReplyTimeout: the timeout has passed, and the worker was killed.
            BackendUnavailable: no worker can be started, or the pool is closed.
        """
        with self._slot(urgent=urgent):
            worker = self._acquire()
            try:
                reply = worker.call(request, timeout_s)
            except BaseException:
                self._discard(worker)
                raise
            self._release(worker)
            return reply

    def close(self) -> None:
        """End all workers, busy ones too. Safe to repeat."""
        with self._condition:
            self._closed = True
            idle, self._idle = self._idle, []
            for worker in self._busy:
                worker.kill()  # ended by the thread that waits for it
        for worker in idle:
            worker.end()
        with self._condition:
            self._condition.wait_for(
                lambda: self._free_slots == self.count and not self._queue,
                timeout=CLOSE_TIMEOUT_S,
            )

    @contextlib.contextmanager
    def _slot(self, *, urgent: bool) -> Iterator[None]:
        """One of `count` slots: urgent requests first, then in order of arrival."""
        ticket = (not urgent, next(self._numbers))
        with self._condition:
            heapq.heappush(self._queue, ticket)
            try:
                self._condition.wait_for(lambda: self._free_slots > 0 and self._queue[0] == ticket)
                self._free_slots -= 1
            finally:
                self._queue.remove(ticket)
                heapq.heapify(self._queue)
                self._condition.notify_all()
        try:
            yield
        finally:
            with self._condition:
                self._free_slots += 1
                self._condition.notify_all()

    def _acquire(self) -> OcrWorker:
        """An idle worker, or a new one."""
        with self._condition:
            worker = self._idle.pop() if self._idle else None
            closed = self._closed
        if worker is None and not closed:
            worker = self._start()
        with self._condition:
            if worker is not None and not self._closed:
                self._busy.add(worker)
                return worker
        if worker is not None:
            worker.end()
        raise BackendUnavailable("the OCR processes are shutting down")

    def _release(self, worker: OcrWorker) -> None:
        with self._condition:
            if not self._closed and worker.requests < MAX_REQUESTS:
                self._busy.discard(worker)
                self._idle.append(worker)
                return
        self._discard(worker)

    def _discard(self, worker: OcrWorker) -> None:
        with self._condition:
            self._busy.discard(worker)  # before its process id can be reused
        worker.end()
