"""The dispatcher's hints, with nobody that looks for work by itself."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import redis

from tests.job_helpers import running_loop, submit
from tests.waiting import eventually
from tests.worker_runtime import LANE
from vestry import Vestry
from workers import dispatcher
from workers.dispatcher import Dispatcher
from workers.settings import Settings, key_prefix
from workers.stack.dev_stack import DevStack


@pytest.mark.parametrize("lost", ["the whole queue", "one hint of two"])
def test_a_lost_hint_is_given_again(
    clean: DevStack, vestry: Vestry, conn: Any, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    monkeypatch.setattr(dispatcher, "REHINT_S", 1.0 if lost == "one hint of two" else 3600.0)
    monkeypatch.setattr(dispatcher, "REHINT_EMPTY_S", 3600.0 if lost == "one hint of two" else 1.0)
    stop, queue = threading.Event(), key_prefix("shareable") + LANE
    settings = Settings(
        database_url=clean.database_url("vestry_control"), broker_url=clean.broker_url("dispatcher")
    )
    first, _ = submit(vestry, conn, "a", "b")
    made = Dispatcher(settings, stop)
    with (
        redis.Redis.from_url(clean.broker_url("shareable")) as broker,
        running_loop(clean, made.run, stop),
    ):
        eventually(lambda: broker.llen(queue) >= 2, within=30)
        if lost == "one hint of two":
            assert str(first).encode() in broker.rpop(queue)  # type: ignore[operator]
        else:
            broker.delete(queue)
        hinted = lambda: b"".join(broker.lrange(queue, 0, -1))  # noqa: E731
        eventually(lambda: str(first).encode() in hinted(), within=30)


def test_the_queue_is_kept_at_its_window(clean: DevStack, vestry: Vestry, conn: Any) -> None:
    stop, queue = threading.Event(), key_prefix("shareable") + LANE
    settings = Settings(
        database_url=clean.database_url("vestry_control"), broker_url=clean.broker_url("dispatcher")
    )
    window = settings.window * settings.slots
    submit(vestry, conn, *map(str, range(200)))
    made = Dispatcher(settings, stop)
    with (
        redis.Redis.from_url(clean.broker_url("shareable")) as broker,
        running_loop(clean, made.run, stop),
    ):
        for _ in range(3):
            eventually(lambda: broker.llen(queue) == window, within=30)
            taken = broker.rpop(queue, 3)
            assert taken is not None
        eventually(lambda: broker.llen(queue) == window, within=30)
        time.sleep(0.6)
        assert broker.llen(queue) == window
