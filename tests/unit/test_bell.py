"""Who wakes, and how often: a ring is neither lost nor heard twice."""

from __future__ import annotations

import threading
import time

from workers.execution.concurrency import SlotPool, Wakeup

LANE = "private.interactive.gpu"


class Sleepers:
    """Threads that count how often one of them woke."""

    def __init__(self, bell: Wakeup, count: int) -> None:
        self.woken = 0
        self._bell = bell
        self._over = False
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while True:
            self._bell.wait()
            if self._over:
                return
            with self._lock:
                self.woken += 1

    def await_woken(self, times: int) -> None:
        until = time.monotonic() + 10
        while self.woken < times:
            assert time.monotonic() < until, "nobody woke"
            time.sleep(0.01)

    def end(self) -> None:
        self._over = True
        self._bell.close()
        for thread in self._threads:
            thread.join(5)
            assert not thread.is_alive()


def test_a_ring_wakes_one() -> None:
    bell = Wakeup(every_s=60)
    sleepers = Sleepers(bell, 4)
    for rings in (1, 2, 3):
        bell.notify()
        sleepers.await_woken(rings)
        time.sleep(0.1)
        assert sleepers.woken == rings
    sleepers.end()


def test_a_ring_that_nobody_hears_is_kept_and_several_are_one() -> None:
    bell = Wakeup(every_s=60)
    for _ in range(5):
        bell.notify()
    sleepers = Sleepers(bell, 3)
    sleepers.await_woken(1)
    time.sleep(0.2)
    assert sleepers.woken == 1
    sleepers.end()


def test_without_a_ring_one_wakes_now_and_then_however_many_sleep() -> None:
    begun = time.monotonic()
    bell = Wakeup(every_s=0.2)
    sleepers = Sleepers(bell, 5)
    sleepers.await_woken(3)
    woken = sleepers.woken
    assert woken <= (time.monotonic() - begun) / 0.2 + 1
    sleepers.end()


def test_a_slot_given_back_says_who_did_without() -> None:
    slots = SlotPool(1)
    assert slots.try_acquire(LANE, ["embedding", "rerank"]) == ["embedding", "rerank"]
    assert not slots.release(LANE, ["rerank"])
    assert slots.try_acquire(LANE, ["embedding", "rerank"]) == ["rerank"]
    assert not slots.release(LANE, ["rerank"])
    # Said once, to whoever gives it back.
    assert slots.release(LANE, ["embedding"])
    assert slots.try_acquire(LANE, ["embedding"]) == ["embedding"]
    assert not slots.release(LANE, ["embedding"])
