"""Hints of the dispatcher: when a job gets one, lost ones, the window, and failures of the broker."""

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
from tests import job_helpers
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
    dispatcher = Dispatcher(Settings(broker_url=stack.broker_url("dispatcher")), stop)
    with psycopg.connect(stack.database_url("vestry_control"), autocommit=True) as conn:
        thread = threading.Thread(target=dispatcher.run, args=(conn,))
        thread.start()
        try:
            yield dispatcher
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


@pytest.mark.parametrize("lost", ["the whole queue", "one hint of two"])
def test_lost_hint_is_published_again(  # noqa: PLR0917 - pytest's, by name
    clean: DevStack, vestry: Vestry, conn: Any, broker: redis.Redis,
    monkeypatch: pytest.MonkeyPatch, lost: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(dispatcher, "REHINT_S", 1.0 if lost == "one hint of two" else 3600.0)
    monkeypatch.setattr(dispatcher, "REHINT_EMPTY_S", 3600.0 if lost == "one hint of two" else 1.0)
    first, _ = job_helpers.submit(vestry, conn, "a", "b")
    with dispatching(clean):
        eventually(lambda: hints(broker, LATER) >= 2, within=30)
        if lost == "one hint of two":
            assert str(first).encode() in broker.rpop(queue(LATER))  # type: ignore[operator]
        else:
            broker.delete(queue(LATER))
        hinted = lambda: b"".join(broker.lrange(queue(LATER), 0, -1))  # noqa: E731
        eventually(lambda: str(first).encode() in hinted(), within=30)


def test_queue_is_kept_at_its_window(
    clean: DevStack, vestry: Vestry, conn: Any, broker: redis.Redis
) -> None:
    settings = Settings()
    window = settings.hints_per_slot * settings.slots
    job_helpers.submit(vestry, conn, *map(str, range(200)))
    with dispatching(clean):
        for _ in range(3):
            eventually(lambda: hints(broker, LATER) == window, within=30)
            taken = broker.rpop(queue(LATER), 3)
            assert taken is not None
        eventually(lambda: hints(broker, LATER) == window, within=30)
        time.sleep(0.6)
        assert hints(broker, LATER) == window


def test_lane_whose_broker_key_is_no_list_stops_no_other(
    clean: DevStack, broker: redis.Redis
) -> None:
    broker.set(queue(FIRST), "not a list")
    with dispatching(clean):
        submit(clean, "interactive")
        submit(clean, "bulk")
        eventually(lambda: hints(broker, LATER) == 1, within=30)
        broker.delete(queue(FIRST))
        eventually(lambda: hints(broker, FIRST) == 1, within=30)


def test_broker_key_that_is_replaced_later_stops_no_other(
    clean: DevStack, broker: redis.Redis
) -> None:
    with dispatching(clean):
        submit(clean, "interactive")
        eventually(lambda: hints(broker, FIRST) == 1, within=30)
        # Replaced once the dispatcher has counted the lane's hints.
        broker.delete(queue(FIRST))
        broker.set(queue(FIRST), "not a list")
        submit(clean, "interactive")
        submit(clean, "bulk")
        eventually(lambda: hints(broker, LATER) == 1, within=30)


def hinted(stack: DevStack) -> list[float | None]:
    """Seconds from each job's enqueue to its hint stamp."""
    with psycopg.connect(stack.superuser_url) as conn:
        rows = conn.execute(
            """SELECT extract(epoch FROM hinted_at - created_at)::float8 FROM vestry.jobs
               ORDER BY id"""
        ).fetchall()
    return [row[0] for row in rows]


def ready(stack: DevStack) -> bool:
    """Whether the dispatcher has completed its first round."""
    with psycopg.connect(stack.superuser_url) as conn:
        rows = conn.execute("SELECT FROM pg_locks WHERE locktype = 'advisory'").fetchall()
    return len(rows) == len(LANES)


def test_interactive_job_claimed_within_its_head_start_gets_no_hint(
    clean: DevStack, broker: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "HEAD_START_S", 3.0)
    with dispatching(clean):
        eventually(lambda: ready(clean), within=30)
        submit(clean, "interactive")
        time.sleep(0.3)
        with psycopg.connect(clean.database_url("vestry_shareable")) as worker:
            policy = LeasePolicy("test", "shareable", lease_s=60, max_run_s=600)
            assert claims.claim(worker, policy, FIRST, ["embedding"])
        time.sleep(3.2)
        assert hints(broker, FIRST) == 0
        assert hinted(clean) == [None]
        # A bulk job has no head start.
        submit(clean, "bulk")
        eventually(lambda: hints(broker, LATER) == 1, within=30)
        assert hinted(clean)[1] < 3.0  # type: ignore[operator]


def test_unclaimed_interactive_job_gets_a_hint_after_its_head_start(
    clean: DevStack, broker: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No tick within the test.
    monkeypatch.setattr(dispatcher, "TICK_S", 12.0)
    monkeypatch.setattr(dispatcher, "HEAD_START_S", 0.3)
    with dispatching(clean):
        eventually(lambda: ready(clean), within=30)
        submit(clean, "interactive")
        time.sleep(0.15)
        # A job that arrives during another's head start has its own.
        submit(clean, "interactive")
        eventually(lambda: hints(broker, FIRST) == 2, within=30)
        assert all(0.3 <= after < 10.0 for after in hinted(clean) if after is not None)


@pytest.mark.parametrize(
    ("error", "paused"),
    [
        (redis.ConnectionError(), {FIRST, LATER}),
        (redis.TimeoutError(), {FIRST, LATER}),
        (ConnectionResetError(), {FIRST, LATER}),
        (OperationalError(), {FIRST, LATER}),
        (redis.ResponseError("WRONGTYPE"), {FIRST}),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_unavailable_broker_pauses_every_lane_and_a_refused_command_one(
    clean: DevStack, error: Exception, paused: set[str], wrapped: bool
) -> None:
    dispatcher = Dispatcher(Settings(broker_url=clean.broker_url("dispatcher")), threading.Event())
    raised: Any = error
    if wrapped:
        raised = OperationalError()
        raised.__cause__ = error
    with dispatcher._pausing_on_error(FIRST):
        raise raised
    assert {FIRST, LATER} - set(dispatcher._fillable({FIRST, LATER})) == paused
