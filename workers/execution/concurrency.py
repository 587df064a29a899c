"""Who may run now: slots per lane and kind, and the lock that lets a suspect run alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class SlotPool:
    """Batches in flight, counted per lane and kind: a long generation cannot take the slot that a
    query's embedding needs.

    Args:
        size: slots of each lane and kind.
    """  # noqa: D205

    def __init__(self, size: int) -> None:
        self._size = size
        self._semaphores: dict[tuple[str, str], threading.Semaphore] = {}
        self._missed: set[tuple[str, str]] = set()
        self._lock = threading.Lock()

    def acquire(self, lane: str, kind: str) -> None:
        """Take a slot, when there is one."""
        self._semaphore(lane, kind).acquire()

    def try_acquire(self, lane: str, kinds: Iterable[str]) -> list[str]:
        """Take a slot of each kind that has one now; those kinds."""
        return [kind for kind in kinds if self._try_one(lane, kind)]

    def release(self, lane: str, kinds: Iterable[str]) -> bool:
        """Give a slot of each kind back.

        Returns:
            Whether somebody did without one of them meanwhile, and should look again.
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
        # One given back before that was written down would be missed by everybody.
        return slot.acquire(blocking=False)

    def _semaphore(self, lane: str, kind: str) -> threading.Semaphore:
        with self._lock:
            return self._semaphores.setdefault((lane, kind), threading.Semaphore(self._size))


class SharedExclusiveLock:
    """Shared by ordinary batches, held alone by a suspect. A waiting suspect goes first, else a busy
    process would never be empty.
    """  # noqa: D205

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running = 0
        self._exclusive = False
        self._waiting = 0

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Run beside others."""
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
        """Run while nothing else does; False if what runs was not over after `patience_s`.

        Others wait no longer than that: a batch that hangs must not stop the whole process.
        """
        with self._changed:
            self._waiting += 1
            try:
                empty = self._changed.wait_for(
                    lambda: not self._exclusive and not self._running, timeout_s
                )
                self._exclusive = self._exclusive or empty
            finally:
                self._waiting -= 1
                self._changed.notify_all()
        if not empty:
            yield False
            return
        try:
            yield True
        finally:
            with self._changed:
                self._exclusive = False
                self._changed.notify_all()


# What wakes a lane's feeders: one of them a ring, and one of them now and then without any.


class Wakeup:
    """A ring wakes one sleeper; one that finds nobody asleep is kept for the next to lie down.

    Rings that come before anybody has woken are one: who wakes looks at all there is, and rings
    again if it leaves something. So a burst wakes one feeder, and the next only if work remains.

    Args:
        every_s: somebody wakes at least this often, in seconds: one sleeper, however many there are.
    """

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._changed = threading.Condition()
        self._notified = False
        self._closed = False
        self._due = time.monotonic() + every_s

    def notify(self) -> None:
        """There may be work."""
        with self._changed:
            self._notified = True
            self._changed.notify()

    def close(self) -> None:
        """Nobody sleeps here any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def wait(self) -> None:
        """Sleep until it is this thread's turn to look."""
        with self._changed:
            while not (self._notified or self._closed):
                left = self._due - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            self._notified = False
            self._due = time.monotonic() + self._every_s
