"""A failed heartbeat is retried before the leases expire."""

from __future__ import annotations

import threading
from typing import Any

import psycopg

from workers.execution.heartbeat import Heartbeat

EVERY_S = 2.0


class RecordingEvent(threading.Event):
    """Records the timeouts of its waits."""

    def __init__(self) -> None:
        super().__init__()
        self.timeouts: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.timeouts.append(timeout or 0.0)
        return super().wait(timeout)


def test_failed_connection_is_retried_before_the_next_interval() -> None:
    attempts = 0
    third_attempt = threading.Event()

    def connect() -> psycopg.Connection[Any]:
        nonlocal attempts
        attempts += 1
        if attempts == 3:
            third_attempt.set()
        raise psycopg.OperationalError

    stop = RecordingEvent()
    heartbeat = Heartbeat(connect, lease_s=8.0, every_s=EVERY_S, max_run_s=60.0, stop=stop)
    heartbeat.start()
    assert third_attempt.wait(30)
    heartbeat.stop()
    assert sum(stop.timeouts[1:3]) < EVERY_S
