"""Claim, finish and rescue against real Postgres, without worker processes."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import psycopg
import pytest

from models import leases, transitions
from models.content import ShareableContent
from models.leases import Terms
from tasks.protocol import Failed, Succeeded
from vestry.ids import uuid7
from workers.devstack import DevStack
from workers.finishing import finish

LANE = "shareable.bulk.gpu"
TERMS = Terms(worker="test", privacy="shareable", lease_s=60, max_run_s=600)


def enqueue(
    conn: Any, owner: str, count: int, *, latency: str = "bulk", units: int = 1
) -> list[UUID]:
    ids = sorted(uuid7() for _ in range(count))
    conn.execute(
        """SELECT * FROM vestry.enqueue_jobs_v1(
             %s, 'shareable', %s, NULL, NULL, NULL, NULL, NULL, NULL,
             %s::uuid[], %s::text[], %s::text[], %s::text[], %s::int[], %s::bool[], %s::int[],
             NULL, NULL, NULL, NULL, %s::text[], NULL, NULL, NULL, NULL)""",
        [
            owner, latency, ids, ["embedding"] * count, ["gpu"] * count, [None] * count,
            [units] * count, [True] * count, [3600] * count, [json.dumps({"texts": ["x"]})] * count,
        ],
    )  # fmt: skip
    return ids


@pytest.fixture
def producer(clean: DevStack) -> Any:
    with psycopg.connect(clean.database_url("vestry_producer"), autocommit=True) as conn:
        yield conn


@pytest.fixture
def worker(clean: DevStack) -> Any:
    with psycopg.connect(clean.database_url("vestry_shareable"), autocommit=True) as conn:
        yield conn


@pytest.fixture
def control(clean: DevStack) -> Any:
    with psycopg.connect(clean.database_url("vestry_control"), autocommit=True) as conn:
        yield conn


def states(conn: Any, ids: list[UUID]) -> list[str]:
    rows = conn.execute("SELECT state FROM vestry.jobs WHERE id = ANY (%s) ORDER BY id", [ids])
    return [row[0] for row in rows]


def test_a_claimed_batch_finishes_once(producer: Any, worker: Any) -> None:
    ids = enqueue(producer, "ann", 3)
    with worker.transaction():
        lease = leases.claim(worker, TERMS, LANE, ["embedding"])
    assert lease is not None
    assert [job.id for job in lease.jobs] == ids
    assert leases.claim(worker, TERMS, LANE, ["embedding"]) is None

    outcomes = {i: Succeeded({"vectors": [[1.0]], "space": "s"}) for i in ids[:2]}
    outcomes[ids[2]] = Failed("broken", "it broke", retryable=False)  # type: ignore[assignment]
    with worker.transaction():
        first = finish(worker, ShareableContent(), lease, outcomes, backoff_cap_s=1)
    with worker.transaction():
        again = finish(worker, ShareableContent(), lease, outcomes, backoff_cap_s=1)

    assert states(producer, ids) == ["succeeded", "succeeded", "dead"]
    assert set(first.states.values()) == {"succeeded", "dead"}
    assert set(again.states.values()) == {"refused"}
    outcome = producer.execute("SELECT outcome FROM vestry.receipts ORDER BY job_id").fetchall()
    assert [row[0] for row in outcome] == ["succeeded", "succeeded", "dead"]


def test_owners_take_turns(producer: Any, worker: Any) -> None:
    enqueue(producer, "many", 1000)
    enqueue(producer, "few", 5)
    with worker.transaction():
        lease = leases.claim(worker, TERMS, LANE, ["embedding"], limit=12)
    assert lease is not None
    assert sum(job.owner == "few" for job in lease.jobs) == 5


def test_a_hint_is_first_and_the_line_tops_up(producer: Any, worker: Any) -> None:
    ids = enqueue(producer, "ann", 10)
    with worker.transaction():
        lease = leases.claim(worker, TERMS, LANE, ["embedding"], hint=ids[7], limit=3)
    assert lease is not None
    assert {job.id for job in lease.jobs} == {ids[7], ids[0], ids[1]}
    with worker.transaction():
        assert leases.claim(worker, TERMS, LANE, ["embedding"], hint=ids[7]) is None


def test_a_paused_lane_gives_nothing(producer: Any, worker: Any) -> None:
    ids = enqueue(producer, "ann", 2)
    producer.execute("SELECT vestry.pause_lane_v1(%s, true)", [LANE])
    with worker.transaction():
        assert leases.claim(worker, TERMS, LANE, ["embedding"]) is None
        assert leases.claim(worker, TERMS, LANE, ["embedding"], hint=ids[0]) is None
    producer.execute("SELECT vestry.pause_lane_v1(%s, false)", [LANE])
    with worker.transaction():
        assert leases.claim(worker, TERMS, LANE, ["embedding"]) is not None


def test_a_lost_batch_becomes_suspects_and_a_lone_crasher_dies(
    producer: Any, worker: Any, control: Any
) -> None:
    ids = enqueue(producer, "ann", 2)
    short = Terms(worker="test", privacy="shareable", lease_s=0.001, max_run_s=600)
    with worker.transaction():
        lease = leases.claim(worker, short, LANE, ["embedding"])
    assert lease is not None
    with control.transaction():
        assert transitions.rescue(control).suspects == 2
    with worker.transaction():
        assert leases.claim(worker, short, LANE, ["embedding"]) is None
    with worker.transaction():
        done = finish(
            worker, ShareableContent(), lease, {ids[0]: Succeeded({"vectors": [], "space": "s"})},
            backoff_cap_s=1,
        )  # fmt: skip
    assert done.states == {ids[0]: "refused"}
    for expected in (1, 0):
        with worker.transaction():
            alone = leases.claim(worker, short, LANE, ["embedding"], suspect=True)
        assert alone is not None
        assert alone.jobs[0].id == ids[0]
        with control.transaction():
            assert transitions.rescue(control).suspects == expected
        worker.execute("UPDATE vestry.jobs SET turn = turn + 1 WHERE id = %s", [ids[1]])
    assert states(producer, ids) == ["dead", "queued"]
    attempts = producer.execute(
        "SELECT attempt FROM vestry.jobs WHERE id = %s", [ids[1]]
    ).fetchone()
    assert attempts == (0,)


def test_a_retry_waits_and_is_admitted_to_the_front(
    producer: Any, worker: Any, control: Any
) -> None:
    ids = enqueue(producer, "ann", 5)
    with worker.transaction():
        lease = leases.claim(worker, TERMS, LANE, ["embedding"], limit=1)
    assert lease is not None
    with worker.transaction():
        finish(
            worker, ShareableContent(), lease,
            {ids[0]: Failed("later", "later", retryable=True, retry_after=0.0)}, backoff_cap_s=0.01,
        )  # fmt: skip
    assert states(producer, ids[:1]) == ["queued"]
    producer.execute("SELECT pg_sleep(0.05)")
    with control.transaction():
        assert transitions.admit(control) == [LANE]
    with worker.transaction():
        again = leases.claim(worker, TERMS, LANE, ["embedding"], limit=1)
    assert again is not None
    assert again.jobs[0].id == ids[0]
    assert again.jobs[0].attempt == 2


def test_handing_back_costs_no_attempt(producer: Any, worker: Any) -> None:
    ids = enqueue(producer, "ann", 2)
    with worker.transaction():
        lease = leases.claim(worker, TERMS, LANE, ["embedding"])
    assert lease is not None
    with worker.transaction():
        assert transitions.hand_back(worker, lease.id) == 2
    rows = producer.execute("SELECT attempt, state FROM vestry.jobs").fetchall()
    assert rows == [(0, "queued"), (0, "queued")]
    assert producer.execute("SELECT vestry.cancel_jobs_v1(%s)", [ids]).fetchall()


def test_cancelling_a_running_job_fences_its_worker(producer: Any, worker: Any) -> None:
    ids = enqueue(producer, "ann", 1)
    with worker.transaction():
        lease = leases.claim(worker, TERMS, LANE, ["embedding"])
    assert lease is not None
    producer.execute("SELECT vestry.cancel_jobs_v1(%s)", [ids])
    assert leases.beat(worker, [lease.id], 60) == frozenset()
    with worker.transaction():
        done = finish(
            worker, ShareableContent(), lease, {ids[0]: Succeeded({"vectors": [], "space": "s"})},
            backoff_cap_s=1,
        )  # fmt: skip
    assert done.states == {ids[0]: "refused"}
    assert states(producer, ids) == ["cancelled"]
