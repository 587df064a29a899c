"""Concurrency of one worker: slots per lane and kind, exclusive runs, and wake-ups of fetch threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class SlotPool:
    """Slots for batches in flight, per lane and kind.

    A long generation does not take the slot of a query's embedding.

    Args:
        size: slots of each (lane, kind).
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._semaphores: dict[tuple[str, str], threading.Semaphore] = {}
        self._missed: set[tuple[str, str]] = set()
        self._lock = threading.Lock()

    def acquire(self, lane: str, kind: str) -> None:
        """Acquire a slot; waits until one is free."""
        self._semaphore(lane, kind).acquire()

    def try_acquire(self, lane: str, kinds: Iterable[str]) -> list[str]:
        """Acquire a slot of each kind that has a free one; returns those kinds."""
        return [kind for kind in kinds if self._try_one(lane, kind)]

    def release(self, lane: str, kinds: Iterable[str]) -> bool:
        """Release one slot of each kind.

        Returns:
            Whether `try_acquire` has missed one of them since, so that a thread should poll again.
        """
        missed = False
        for kind in kinds:
            self._semaphore(lane, kind).release()
            with self._lock:
                missed = missed or (lane, kind) in self._missed
                self._missed.discard((lane, kind))
        return missed

    def _try_one(self, lane: str, kind: str) -> bool:
        slot = self._semaphore(lane, kind)
        if slot.acquire(blocking=False):
            return True
        with self._lock:
            self._missed.add((lane, kind))
        # A slot released before the miss was recorded would wake no thread: try again.
        return slot.acquire(blocking=False)

    def _semaphore(self, lane: str, kind: str) -> threading.Semaphore:
        with self._lock:
            return self._semaphores.setdefault((lane, kind), threading.Semaphore(self._size))


class SharedExclusiveLock:
    """Lock that ordinary batches share and a quarantined job holds exclusively.

    A waiting exclusive run blocks new shared ones: a busy process would otherwise never be empty.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running = 0
        self._exclusive = False
        self._waiting = 0

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Hold the lock together with other shared holders."""
        with self._changed:
            self._changed.wait_for(lambda: not self._exclusive and not self._waiting)
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    @contextmanager
    def exclusive(self, timeout_s: float) -> Iterator[bool]:
        """Hold the lock exclusively; yields False if the shared holders have not released it in time.

        New shared holders wait no longer than `timeout_s` either: one hanging batch must not stop the
        whole process.
        """
        with self._changed:
            self._waiting += 1
            try:
                acquired = self._changed.wait_for(
                    lambda: not self._exclusive and not self._running, timeout_s
                )
                self._exclusive = self._exclusive or acquired
            finally:
                self._waiting -= 1
                self._changed.notify_all()
        if not acquired:
            yield False
            return
        try:
            yield True
        finally:
            with self._changed:
                self._exclusive = False
                self._changed.notify_all()


class Wakeup:
    """Coalescing wake-up for fetch threads.

    `notify()` releases one waiter; with no waiter it is remembered, and repeated calls collapse into
    one. A released thread notifies again if it leaves work behind: a burst wakes one thread, and the
    next only if work remains.

    Args:
        every_s: longest interval between releases of a waiter.
    """

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._changed = threading.Condition()
        self._notified = False
        self._closed = False
        self._due = time.monotonic() + every_s

    def notify(self) -> None:
        """Release one waiter, or the next to wait."""
        with self._changed:
            self._notified = True
            self._changed.notify()

    def close(self) -> None:
        """Release all waiters, now and later."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def wait(self) -> None:
        """Wait until notified, closed, or `every_s` after the last release."""
        with self._changed:
            while not (self._notified or self._closed):
                remaining_s = self._due - time.monotonic()
                if remaining_s <= 0:
                    break
                self._changed.wait(remaining_s)
            self._notified = False
            self._due = time.monotonic() + self._every_s
