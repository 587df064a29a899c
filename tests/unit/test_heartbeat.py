"""A beat that fails is repeated before the leases run out."""

from __future__ import annotations

import threading
from typing import Any

import psycopg

from workers.execution.heartbeat import Heartbeat

EVERY_S = 2.0


class Waits(threading.Event):
    """Remembers how long it was waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.asked.append(timeout or 0.0)
        return super().wait(timeout)


def test_a_connection_that_cannot_be_had_is_asked_for_again_at_once() -> None:
    tried = 0
    enough = threading.Event()

    def connect() -> psycopg.Connection[Any]:
        nonlocal tried
        tried += 1
        if tried == 3:
            enough.set()
        raise psycopg.OperationalError

    heart = Heartbeat(connect, lease_s=8.0, every_s=EVERY_S, max_run_s=60.0)
    heart._stop = waits = Waits()
    heart.start()
    assert enough.wait(30)
    heart.stop()
    assert sum(waits.asked[1:3]) < EVERY_S
