"""Wake-ups are neither lost nor doubled; slots record the kinds that missed one."""

from __future__ import annotations

import threading
import time

from tests.waiting import eventually
from workers.execution.concurrency import SlotPool, Wakeup

LANE = "private.interactive.gpu"


class Waiters:
    """Threads that count their releases."""

    def __init__(self, wakeup: Wakeup, count: int) -> None:
        self.released = 0
        self._wakeup = wakeup
        self._ending = False
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while True:
            self._wakeup.wait()
            if self._ending:
                return
            with self._lock:
                self.released += 1

    def await_released(self, times: int) -> None:
        eventually(lambda: self.released >= times, within=10)

    def end(self) -> None:
        self._ending = True
        self._wakeup.close()
        for thread in self._threads:
            thread.join(5)
            assert not thread.is_alive()


def test_notification_releases_one_waiter() -> None:
    wakeup = Wakeup(every_s=60)
    waiters = Waiters(wakeup, 4)
    for notified in (1, 2, 3):
        wakeup.notify()
        waiters.await_released(notified)
        time.sleep(0.1)
        assert waiters.released == notified
    waiters.end()


def test_notifications_without_a_waiter_are_kept_as_one() -> None:
    wakeup = Wakeup(every_s=60)
    for _ in range(5):
        wakeup.notify()
    waiters = Waiters(wakeup, 3)
    waiters.await_released(1)
    time.sleep(0.2)
    assert waiters.released == 1
    waiters.end()


def test_interval_releases_one_waiter_however_many_wait() -> None:
    start = time.monotonic()
    wakeup = Wakeup(every_s=0.2)
    waiters = Waiters(wakeup, 5)
    waiters.await_released(3)
    released = waiters.released
    assert released <= (time.monotonic() - start) / 0.2 + 1
    waiters.end()


def test_release_of_a_slot_reports_a_kind_that_missed_it() -> None:
    slots = SlotPool(1)
    assert slots.try_acquire(LANE, ["embedding", "rerank"]) == ["embedding", "rerank"]
    assert not slots.release(LANE, ["rerank"])
    assert slots.try_acquire(LANE, ["embedding", "rerank"]) == ["rerank"]
    assert not slots.release(LANE, ["rerank"])
    # Reported once.
    assert slots.release(LANE, ["embedding"])
    assert slots.try_acquire(LANE, ["embedding"]) == ["embedding"]
    assert not slots.release(LANE, ["embedding"])
