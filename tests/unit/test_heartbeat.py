"""A beat that fails is repeated before the leases run out."""

from __future__ import annotations

import threading
import time
from typing import Any

import psycopg

from workers.heartbeat import Heartbeat

EVERY_S = 2.0


def test_a_connection_that_cannot_be_had_is_asked_for_again_at_once() -> None:
    tried: list[float] = []
    enough = threading.Event()

    def connect() -> psycopg.Connection[Any]:
        tried.append(time.monotonic())
        if len(tried) == 3:
            enough.set()
        raise psycopg.OperationalError

    heart = Heartbeat(connect, lease_s=8.0, every_s=EVERY_S, max_run_s=60.0)
    heart.start()
    assert enough.wait(30)
    heart.stop()
    assert tried[2] - tried[0] < EVERY_S
