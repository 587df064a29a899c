"""The one thread that touches the device, and its two queues."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")

MAX_PREEMPTIONS = 20
"""So many urgent pieces may pass a waiting one before it gets its turn: bulk slows, never starves."""


class DeviceThread:
    """Runs small pieces of work one at a time, urgent ones first.

    One thread alone keeps a GPU's context and, on a CPU, the maths library's single team of
    threads; with several callers each would bring a team, all spinning for the same cores.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._condition = threading.Condition()
        self._urgent: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._patient: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._overtaken = 0
        self._thread: threading.Thread | None = None

    def run(self, work: Callable[[], T], *, urgent: bool = False) -> T:
        """Do `work` on the device's thread and wait for what it returns or raises.

        A piece should be short: an urgent one waits for the piece under way.
        """
        future: Future[T] = Future()
        with self._condition:
            (self._urgent if urgent else self._patient).append((work, future))
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
                self._thread.start()
            self._condition.notify()
        return future.result()

    def _serve(self) -> None:
        while True:
            with self._condition:
                while not (self._urgent or self._patient):
                    self._condition.wait()
                work, future = self._next()
            try:
                future.set_result(work())
            except BaseException as error:  # raised where `run` waits
                future.set_exception(error)
            # Nothing of the texts may outlive the call while the thread waits for more.
            del work, future

    def _next(self) -> tuple[Callable[[], Any], Future[Any]]:
        if not self._patient:
            return self._urgent.popleft()
        if self._urgent and self._overtaken < MAX_PREEMPTIONS:
            self._overtaken += 1
            return self._urgent.popleft()
        self._overtaken = 0
        return self._patient.popleft()


@cache
def device_thread(device: str) -> DeviceThread:
    """The thread of a device, such as `cpu` or `cuda:0`: all models on it share the one."""
    return DeviceThread(f"device-{device}")
