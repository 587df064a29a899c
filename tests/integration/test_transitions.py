"""Claim, finish and rescue against real Postgres, without worker processes."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import psycopg

from models import claims, transitions
from models.claims import Lease, LeasePolicy
from models.content import ShareableContent
from models.states import State
from models.transitions import Settlement
from tasks.protocol import Failed, Succeeded
from vestry.db.operations import uuid7
from workers.execution.finish import write_outcomes
from workers.stack.dev_stack import DevStack

LANE = "shareable.bulk.gpu"
POLICY = LeasePolicy(worker="test", privacy="shareable", lease_s=60, max_run_s=600)
SHORT = LeasePolicy(worker="test", privacy="shareable", lease_s=0.001, max_run_s=600)
DONE = Succeeded({"vectors": [], "space": "s"})


def enqueue(
    conn: Any, owner: str, count: int, *, latency: str = "bulk", cost: int = 1
) -> list[UUID]:
    ids = sorted(uuid7() for _ in range(count))
    conn.execute(
        """SELECT * FROM vestry.enqueue_jobs_v1(
             %s, 'shareable', %s, %s::uuid[], p_kinds => %s::text[], p_pools => %s::text[],
             p_costs => %s::int[], p_keep_payload => %s::bool[], p_result_ttl_s => %s::int[],
             p_texts => %s::text[])""",
        [
            owner, latency, ids, ["embedding"] * count, ["gpu"] * count, [cost] * count,
            [True] * count, [3600] * count, [json.dumps({"texts": ["x"]})] * count,
        ],
    )  # fmt: skip
    return ids


def claim(worker: Any, policy: LeasePolicy = POLICY, **options: Any) -> Lease:
    with worker.transaction():
        lease = claims.claim(worker, policy, LANE, ["embedding"], **options)
    assert lease is not None
    return lease


def states(conn: Any, ids: list[UUID]) -> list[str]:
    rows = conn.execute("SELECT state FROM vestry.jobs WHERE id = ANY (%s) ORDER BY id", [ids])
    return [row[0] for row in rows]


def test_claimed_batch_finishes_once(producer: Any, worker: Any) -> None:
    ids = enqueue(producer, "ann", 3)
    lease = claim(worker)
    assert [job.id for job in lease.jobs] == ids
    assert claims.claim(worker, POLICY, LANE, ["embedding"]) is None

    outcomes = {i: Succeeded({"vectors": [[1.0]], "space": "s"}) for i in ids[:2]}
    outcomes[ids[2]] = Failed("broken", "it broke", retryable=False)  # type: ignore[assignment]
    with worker.transaction():
        first = write_outcomes(worker, ShareableContent(), lease, outcomes, backoff_cap_s=1)
    with worker.transaction():
        again = write_outcomes(worker, ShareableContent(), lease, outcomes, backoff_cap_s=1)

    assert states(producer, ids) == ["succeeded", "succeeded", "dead"]
    assert set(first.states.values()) == {"succeeded", "dead"}
    assert set(again.states.values()) == {"refused"}
    outcome = producer.execute("SELECT outcome FROM vestry.receipts ORDER BY job_id").fetchall()
    assert [row[0] for row in outcome] == ["succeeded", "succeeded", "dead"]


def test_claim_alternates_between_owners(producer: Any, worker: Any) -> None:
    enqueue(producer, "many", 1000)
    enqueue(producer, "few", 5)
    lease = claim(worker, limit=12)
    assert sum(job.owner == "few" for job in lease.jobs) == 5


def test_hinted_job_is_claimed_first_and_the_queue_fills_the_batch(
    producer: Any, worker: Any
) -> None:
    ids = enqueue(producer, "ann", 10)
    lease = claim(worker, hint=ids[7], limit=3)
    assert {job.id for job in lease.jobs} == {ids[7], ids[0], ids[1]}
    with worker.transaction():
        assert claims.claim(worker, POLICY, LANE, ["embedding"], hint=ids[7]) is None


def test_paused_lane_has_no_claims(producer: Any, worker: Any) -> None:
    ids = enqueue(producer, "ann", 2)
    producer.execute("SELECT vestry.pause_lane_v1(%s, true)", [LANE])
    with worker.transaction():
        assert claims.claim(worker, POLICY, LANE, ["embedding"]) is None
        assert claims.claim(worker, POLICY, LANE, ["embedding"], hint=ids[0]) is None
    producer.execute("SELECT vestry.pause_lane_v1(%s, false)", [LANE])
    with worker.transaction():
        assert claims.claim(worker, POLICY, LANE, ["embedding"]) is not None


def test_lost_batch_is_quarantined_and_a_second_exclusive_crash_is_dead(
    producer: Any, worker: Any, control: Any
) -> None:
    ids = enqueue(producer, "ann", 2)
    lease = claim(worker, SHORT)
    with control.transaction():
        assert transitions.rescue(control).quarantined == 2
    with worker.transaction():
        assert claims.claim(worker, SHORT, LANE, ["embedding"]) is None
    with worker.transaction():
        done = write_outcomes(
            worker, ShareableContent(), lease, {ids[0]: DONE},
            backoff_cap_s=1,
        )  # fmt: skip
    assert done.states == {ids[0]: "refused"}
    for expected in (1, 0):
        exclusive = claim(worker, SHORT, quarantined=True)
        assert exclusive.jobs[0].id == ids[0]
        with control.transaction():
            assert transitions.rescue(control).quarantined == expected
        worker.execute("UPDATE vestry.jobs SET start_tag = start_tag + 1 WHERE id = %s", [ids[1]])
    assert states(producer, ids) == ["dead", "queued"]
    attempts = producer.execute(
        "SELECT attempt FROM vestry.jobs WHERE id = %s", [ids[1]]
    ).fetchone()
    assert attempts == (0,)


def test_retry_waits_and_is_scheduled_at_the_front(
    producer: Any, worker: Any, control: Any
) -> None:
    ids = enqueue(producer, "ann", 5)
    lease = claim(worker, limit=1)
    with worker.transaction():
        write_outcomes(
            worker, ShareableContent(), lease,
            {ids[0]: Failed("later", "later", retryable=True, retry_after=0.0)}, backoff_cap_s=0.01,
        )  # fmt: skip
    assert states(producer, ids[:1]) == ["queued"]
    producer.execute("SELECT pg_sleep(0.05)")
    with control.transaction():
        assert transitions.schedule_due(control) == [LANE]
    again = claim(worker, limit=1)
    assert again.jobs[0].id == ids[0]
    assert again.jobs[0].attempt == 2


def test_release_costs_no_attempt(producer: Any, worker: Any) -> None:
    ids = enqueue(producer, "ann", 2)
    lease = claim(worker)
    with worker.transaction():
        assert transitions.release(worker, lease.id) == 2
    rows = producer.execute("SELECT attempt, state FROM vestry.jobs").fetchall()
    assert rows == [(0, "queued"), (0, "queued")]
    assert producer.execute("SELECT vestry.cancel_jobs_v1(%s)", [ids]).fetchall()


def test_cancelling_a_running_job_fences_its_worker(producer: Any, worker: Any) -> None:
    ids = enqueue(producer, "ann", 1)
    lease = claim(worker)
    producer.execute("SELECT vestry.cancel_jobs_v1(%s)", [ids])
    assert claims.extend(worker, [lease.id], 60) == frozenset()
    with worker.transaction():
        done = write_outcomes(
            worker, ShareableContent(), lease, {ids[0]: DONE},
            backoff_cap_s=1,
        )  # fmt: skip
    assert done.states == {ids[0]: "refused"}
    assert states(producer, ids) == ["cancelled"]


def test_expired_lease_cannot_change_the_next_attempt(
    producer: Any, worker: Any, control: Any
) -> None:
    # Given an attempt whose lease expired, and a second attempt of the same job
    (job,) = enqueue(producer, "ann", 1)
    late = claim(worker, SHORT)
    transitions.rescue(control)
    now = claim(worker, quarantined=True)
    # When the first attempt releases, settles or finishes the job
    with worker.transaction():
        assert transitions.release(worker, late.id) == 0
        transitions.settle(worker, late.id, [Settlement(job, State.SUCCEEDED)])
    with worker.transaction():
        done = write_outcomes(worker, ShareableContent(), late, {job: DONE}, backoff_cap_s=1)
    # Then the job still runs under its new lease, and finishes once
    assert done.states == {job: "refused"}
    running = producer.execute("SELECT state, lease_id, attempt FROM vestry.jobs").fetchall()
    assert running == [("running", now.id, 1)]
    assert producer.execute("SELECT count(*) FROM vestry.receipts").fetchone() == (1,)
    with worker.transaction():
        write_outcomes(worker, ShareableContent(), now, {job: DONE}, backoff_cap_s=1)
    # And the receipt of the lost attempt is the one that it wrote itself
    kept = producer.execute("SELECT lease_id, outcome FROM vestry.receipts").fetchall()
    assert set(kept) == {(late.id, "refused"), (now.id, "succeeded")}


def test_claims_at_the_same_time_share_no_job_and_wait_for_none(
    clean: DevStack, producer: Any, worker: Any
) -> None:
    ids = enqueue(producer, "ann", 6)
    url = clean.database_url("vestry_shareable")
    with psycopg.connect(url, autocommit=True, options="-c lock_timeout=500") as other:
        with worker.transaction():
            first = claims.claim(worker, POLICY, LANE, ["embedding"], limit=3)
            with other.transaction():
                taken = claims.claim(other, POLICY, LANE, ["embedding"], hint=ids[0])
                second = claims.claim(other, POLICY, LANE, ["embedding"], limit=3)
        assert taken is None
        assert first is not None
        assert second is not None
        assert [job.id for job in (*first.jobs, *second.jobs)] == ids


def test_owner_enqueueing_one_by_one_has_the_same_share(producer: Any, worker: Any) -> None:
    for _ in range(20):
        enqueue(producer, "often", 1)
    (once,) = enqueue(producer, "once", 1)
    assert once in {job.id for job in claim(worker, limit=3).jobs}


def test_costly_jobs_get_fewer_claims(producer: Any, worker: Any) -> None:
    enqueue(producer, "heavy", 10, cost=10)
    enqueue(producer, "light", 20)
    owners = [job.owner for job in claim(worker, limit=22).jobs]
    assert owners.count("light") >= 18


def test_past_claims_do_not_delay_an_owner(producer: Any, worker: Any) -> None:
    # Given an owner with many claimed jobs, and no other owner
    enqueue(producer, "early", 100)
    claim(worker, limit=90)
    # When a second owner enqueues, then both get equal shares
    enqueue(producer, "late", 10)
    owners = [job.owner for job in claim(worker, limit=12).jobs]
    assert 5 <= owners.count("late") <= 7


def test_scheduled_job_is_queued_behind_its_owners_others(
    producer: Any, worker: Any, control: Any
) -> None:
    ids = enqueue(producer, "ann", 5)
    control.execute("UPDATE vestry.jobs SET start_tag = NULL WHERE id = %s", [ids[0]])
    transitions.schedule_due(control)
    assert [job.id for job in claim(worker, limit=4).jobs] == ids[1:]
    assert [job.id for job in claim(worker).jobs] == ids[:1]


def test_job_past_its_deadline_is_not_claimed(admin: Any, producer: Any, worker: Any) -> None:
    late, good = enqueue(producer, "ann", 2)
    admin.execute("UPDATE vestry.jobs SET deadline = vestry.clock() WHERE id = %s", [late])
    with worker.transaction():
        assert claims.claim(worker, POLICY, LANE, ["embedding"], hint=late) is None
    assert [job.id for job in claim(worker).jobs] == [good]


def test_running_job_past_its_deadline_ends_and_its_worker_is_fenced(
    admin: Any, producer: Any, worker: Any, control: Any
) -> None:
    (job,) = enqueue(producer, "ann", 1)
    lease = claim(worker)
    assert transitions.expire(control) == 0
    admin.execute("UPDATE vestry.jobs SET deadline = vestry.clock()")
    assert transitions.expire(control) == 1
    with worker.transaction():
        done = write_outcomes(worker, ShareableContent(), lease, {job: DONE}, backoff_cap_s=1)
    assert done.states == {job: "refused"}
    assert states(producer, [job]) == ["expired"]


def test_quarantined_jobs_are_claimed_singly_and_stay_quarantined_after_a_retry(
    producer: Any, worker: Any, control: Any
) -> None:
    ids = enqueue(producer, "ann", 3)
    claim(worker, SHORT)
    assert transitions.rescue(control).quarantined == 3
    with worker.transaction():
        # A hint claims no quarantined job either: it needs an exclusive lease.
        assert claims.claim(worker, POLICY, LANE, ["embedding"], hint=ids[0]) is None
    lease = claim(worker, quarantined=True)
    (job,) = lease.jobs
    again = Failed("later", "later", retryable=True, retry_after=0.0)
    with worker.transaction():
        write_outcomes(worker, ShareableContent(), lease, {job.id: again}, backoff_cap_s=0)
    transitions.schedule_due(control)
    with worker.transaction():
        assert claims.claim(worker, POLICY, LANE, ["embedding"]) is None


def test_heartbeat_extends_unrescued_leases_up_to_the_longest_run(
    admin: Any, producer: Any, worker: Any, control: Any
) -> None:
    enqueue(producer, "ann", 3)
    late = claim(worker, SHORT, limit=1)
    brief = claim(worker, LeasePolicy("test", "shareable", lease_s=60, max_run_s=5), limit=1)
    over = claim(worker, LeasePolicy("test", "shareable", lease_s=60, max_run_s=0), limit=1)
    claims.extend(worker, [late.id, brief.id, over.id], 600)
    remaining_s = dict(
        admin.execute(
            "SELECT id, extract(epoch FROM expires_at - vestry.clock())::float8 FROM vestry.leases"
        ).fetchall()
    )
    assert remaining_s[late.id] > 500
    assert 0 < remaining_s[brief.id] <= 5
    assert remaining_s[over.id] < 0
    assert transitions.rescue(control).quarantined == 1
    assert claims.extend(worker, [over.id], 600) == frozenset()


def test_conflicting_key_enqueues_nothing_of_the_call(admin: Any, producer: Any) -> None:
    def call(*jobs: tuple[str, str], owner: str = "ann") -> list[tuple[int, str]]:
        ids = [uuid7() for _ in jobs]
        return producer.execute(
            """SELECT ord, status FROM vestry.enqueue_jobs_v1(
                 %(owner)s, 'shareable', 'bulk', p_ids => %(ids)s::uuid[],
                 p_kinds => array_fill('embedding'::text, %(n)s),
                 p_pools => array_fill('gpu'::text, %(n)s), p_costs => array_fill(1, %(n)s),
                 p_keep_payload => array_fill(true, %(n)s), p_result_ttl_s => array_fill(60, %(n)s),
                 p_key_hashes => %(keys)s::bytea[], p_content_hashes => %(content)s::bytea[],
                 p_texts => array_fill('{}'::text, %(n)s))""",
            {"ids": ids, "n": [len(ids)], "keys": [key.encode() for key, _ in jobs],
             "content": [content.encode() for _, content in jobs], "owner": owner},
        ).fetchall()  # fmt: skip

    assert call(("k", "another owner's"), owner="bob") == [(1, "created")]
    assert call(("k", "a")) == [(1, "created")]
    assert call(("new", "b"), ("k", "other")) == [(2, "conflict")]
    counts = """SELECT (SELECT count(*) FROM vestry.jobs),
                       (SELECT count(*) FROM vestry.idempotency_keys)"""
    assert admin.execute(counts).fetchone() == (2, 2)
    assert call(("new", "b"), ("k", "a")) == [(1, "created"), (2, "existing")]
    assert admin.execute(counts).fetchone() == (3, 3)
