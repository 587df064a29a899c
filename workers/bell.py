"""What wakes a lane's feeders: one of them a ring, and one of them now and then without any."""

from __future__ import annotations

import threading
import time


class Bell:
    """A ring wakes one sleeper; one that finds nobody asleep is kept for the next to lie down.

    Rings that come before anybody has woken are one: who wakes looks at all there is, and rings
    again if it leaves something. So a burst wakes one feeder, and the next only if work remains.

    Args:
        every_s: somebody wakes at least this often, in seconds: one sleeper, however many there are.
    """

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._changed = threading.Condition()
        self._rung = False
        self._closed = False
        self._due = time.monotonic() + every_s

    def ring(self) -> None:
        """There may be work."""
        with self._changed:
            self._rung = True
            self._changed.notify()

    def close(self) -> None:
        """Nobody sleeps here any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def wait(self) -> None:
        """Sleep until it is this thread's turn to look."""
        with self._changed:
            while not (self._rung or self._closed):
                left = self._due - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            self._rung = False
            self._due = time.monotonic() + self._every_s
