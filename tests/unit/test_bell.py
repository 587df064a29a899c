"""Who wakes, and how often: a ring is neither lost nor heard twice."""

from __future__ import annotations

import threading
import time

from workers.bell import Bell
from workers.slots import Slots

LANE = "private.interactive.gpu"


class Sleepers:
    """Threads that count how often one of them woke."""

    def __init__(self, bell: Bell, count: int) -> None:
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

    def end(self) -> None:
        self._over = True
        self._bell.close()
        for thread in self._threads:
            thread.join(5)
            assert not thread.is_alive()


def test_a_ring_wakes_one() -> None:
    bell = Bell(every_s=60)
    sleepers = Sleepers(bell, 4)
    time.sleep(0.1)
    for rings in (1, 2, 3):
        bell.ring()
        time.sleep(0.1)
        assert sleepers.woken == rings
    sleepers.end()


def test_a_ring_that_nobody_hears_is_kept_and_several_are_one() -> None:
    bell = Bell(every_s=60)
    for _ in range(5):
        bell.ring()
    sleepers = Sleepers(bell, 3)
    time.sleep(0.2)
    assert sleepers.woken == 1
    sleepers.end()


def test_without_a_ring_one_wakes_now_and_then_however_many_sleep() -> None:
    bell = Bell(every_s=0.2)
    sleepers = Sleepers(bell, 5)
    time.sleep(1.1)
    assert 3 <= sleepers.woken <= 5
    sleepers.end()


def test_a_slot_given_back_says_who_did_without() -> None:
    slots = Slots(1)
    assert slots.free(LANE, ["embedding", "rerank"]) == ["embedding", "rerank"]
    assert not slots.release(LANE, ["rerank"])
    assert slots.free(LANE, ["embedding", "rerank"]) == ["rerank"]
    assert not slots.release(LANE, ["rerank"])
    # Said once, to whoever gives it back.
    assert slots.release(LANE, ["embedding"])
    assert slots.free(LANE, ["embedding"]) == ["embedding"]
    assert not slots.release(LANE, ["embedding"])
