"""When a job gets its hint; a lane whose queue is broken, or a broker that is away, costs no other
lane its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
import redis
from kombu.exceptions import OperationalError

from models import claims
from models.claims import LeasePolicy
from tests.waiting import eventually
from vestry import Embedding, Vestry
from vestry.lanes import LANES
from workers import dispatcher
from workers.dispatcher import Dispatcher
from workers.settings import Settings, key_prefix
from workers.stack.dev_stack import DevStack

FIRST, LATER = "shareable.interactive.gpu", "shareable.bulk.gpu"


@pytest.fixture
def broker(clean: DevStack) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(clean.broker_url("shareable")) as broker:
        yield broker


@contextmanager
def dispatching(stack: DevStack) -> Iterator[Dispatcher]:
    stop = threading.Event()
    made = Dispatcher(Settings(broker_url=stack.broker_url("dispatcher")), stop)
    with psycopg.connect(stack.database_url("vestry_control"), autocommit=True) as conn:
        thread = threading.Thread(target=made.run, args=(conn,))
        thread.start()
        try:
            yield made
        finally:
            stop.set()
            thread.join(30)
            assert not thread.is_alive()


def submit(stack: DevStack, latency: str) -> None:
    url = stack.database_url("vestry_producer")
    with Vestry(url) as vestry, psycopg.connect(url) as conn:
        vestry.enqueue(
            conn, Embedding(texts=["a"]), owner="ann", privacy="shareable", latency=latency
        )


def queue(lane: str) -> str:
    return key_prefix("shareable") + lane


def hints(broker: redis.Redis, lane: str) -> int:
    return int(broker.llen(queue(lane)))


def test_a_lane_whose_key_is_no_list_stops_no_other(clean: DevStack, broker: redis.Redis) -> None:
    broker.set(queue(FIRST), "not a list")
    with dispatching(clean):
        submit(clean, "interactive")
        submit(clean, "bulk")
        eventually(lambda: hints(broker, LATER) == 1, within=30)
        broker.delete(queue(FIRST))
        eventually(lambda: hints(broker, FIRST) == 1, within=30)


def test_a_key_that_is_spoilt_under_way_stops_no_other(
    clean: DevStack, broker: redis.Redis
) -> None:
    with dispatching(clean):
        submit(clean, "interactive")
        eventually(lambda: hints(broker, FIRST) == 1, within=30)
        # Now it is known that the lane has room, and it is hinted at without being counted.
        broker.delete(queue(FIRST))
        broker.set(queue(FIRST), "not a list")
        submit(clean, "interactive")
        submit(clean, "bulk")
        eventually(lambda: hints(broker, LATER) == 1, within=30)


def hinted(stack: DevStack) -> list[float | None]:
    """How long after their enqueue jobs were stamped, in seconds."""
    with psycopg.connect(stack.superuser_url) as conn:
        rows = conn.execute(
            """SELECT extract(epoch FROM hinted_at - created_at)::float8 FROM vestry.jobs
               ORDER BY id"""
        ).fetchall()
    return [row[0] for row in rows]


def ready(stack: DevStack) -> bool:
    """Whether the dispatcher listens, and has done its first round."""
    with psycopg.connect(stack.superuser_url) as conn:
        rows = conn.execute("SELECT FROM pg_locks WHERE locktype = 'advisory'").fetchall()
    return len(rows) == len(LANES)


def test_a_job_that_a_worker_takes_at_once_gets_no_hint(
    clean: DevStack, broker: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "HEAD_START_S", 3.0)
    with dispatching(clean):
        eventually(lambda: ready(clean), within=30)
        submit(clean, "interactive")
        time.sleep(0.3)
        with psycopg.connect(clean.database_url("vestry_shareable")) as worker:
            terms = LeasePolicy("test", "shareable", lease_s=60, max_run_s=600)
            assert claims.claim(worker, terms, FIRST, ["embedding"])
        time.sleep(3.2)
        assert hints(broker, FIRST) == 0
        assert hinted(clean) == [None]
        # A bulk job waits for nobody.
        submit(clean, "bulk")
        eventually(lambda: hints(broker, LATER) == 1, within=30)
        assert hinted(clean)[1] < 3.0  # type: ignore[operator]


def test_a_job_that_nobody_takes_gets_its_hint_when_its_head_start_is_over(
    clean: DevStack, broker: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No tick comes to its help.
    monkeypatch.setattr(dispatcher, "TICK_S", 12.0)
    monkeypatch.setattr(dispatcher, "HEAD_START_S", 0.3)
    with dispatching(clean):
        eventually(lambda: ready(clean), within=30)
        submit(clean, "interactive")
        time.sleep(0.15)
        # One that comes during another's head start has its own.
        submit(clean, "interactive")
        eventually(lambda: hints(broker, FIRST) == 2, within=30)
        assert all(0.3 <= after < 10.0 for after in hinted(clean) if after is not None)


@pytest.mark.parametrize(
    ("error", "resting"),
    [
        (redis.ConnectionError(), {FIRST, LATER}),
        (redis.TimeoutError(), {FIRST, LATER}),
        (ConnectionResetError(), {FIRST, LATER}),
        (OperationalError(), {FIRST, LATER}),
        (redis.ResponseError("WRONGTYPE"), {FIRST}),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_only_a_broker_that_is_away_gives_every_lane_a_rest(
    clean: DevStack, error: Exception, resting: set[str], wrapped: bool
) -> None:
    made = Dispatcher(Settings(broker_url=clean.broker_url("dispatcher")), threading.Event())
    raised: Any = error
    if wrapped:
        raised = OperationalError()
        raised.__cause__ = error
    with made._with_broker_retry(FIRST):
        raise raised
    left = set(made._round_robin({FIRST, LATER}))
    assert {FIRST, LATER} - left == resting
