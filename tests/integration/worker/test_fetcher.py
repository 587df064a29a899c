"""Fetch threads of a lane, notified as the listener notifies them, without hints or polling."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import psycopg
import pytest

from models import claims
from models.claims import LeasePolicy
from tasks.protocol import Context, Job, Outcome, Succeeded
from tests.in_process_fetcher import runtime
from tests.waiting import eventually
from vestry.db.operations import uuid7
from workers.stack.dev_stack import DevStack

LANE = "shareable.interactive.gpu"
DONE = Succeeded({"vectors": [[1.0]], "space": "s"})
POLICY = LeasePolicy("test", "shareable", lease_s=60, max_run_s=600)


def submit(conn: Any, kind: str, count: int = 1, model: str | None = None) -> list[UUID]:
    ids = sorted(uuid7() for _ in range(count))
    conn.execute(
        """SELECT * FROM vestry.enqueue_jobs_v1(
             'ann', 'shareable', 'interactive', p_ids => %(ids)s::uuid[],
             p_kinds => array_fill(%(kind)s::text, %(n)s), p_pools => array_fill('gpu'::text, %(n)s),
             p_models => array_fill(%(model)s::text, %(n)s), p_costs => array_fill(1, %(n)s),
             p_keep_payload => array_fill(true, %(n)s), p_result_ttl_s => array_fill(60, %(n)s),
             p_texts => array_fill('{"texts": ["x"]}'::text, %(n)s))""",
        {"ids": ids, "kind": kind, "n": [count], "model": model},
    )
    return ids


def done(conn: Any, ids: Sequence[UUID]) -> bool:
    row = conn.execute(
        "SELECT count(*) FROM vestry.jobs WHERE id = ANY (%s) AND state = 'succeeded'", [list(ids)]
    ).fetchone()
    return bool(row[0] == len(ids))


def succeed(batch: Sequence[Job], _: Context) -> list[Outcome]:
    return [DONE for _ in batch]


@pytest.mark.parametrize("slots", [1, 2])
def test_each_notification_has_its_job_fetched(clean: DevStack, conn: Any, slots: int) -> None:
    handlers = {"embedding": succeed, "rerank": succeed}
    with runtime(clean, handlers, lanes=(LANE,), slots=slots, poll_s=600) as worker:
        worker.start()
        jobs = []
        for n in range(60):
            jobs += submit(conn, ("embedding", "rerank")[n % 2], model="mn"[n % 3 == 0])
            worker.notify(LANE)
            time.sleep(0.004 * (n % 3))
        eventually(lambda: done(conn, jobs))


def test_one_notification_has_all_jobs_fetched(clean: DevStack, conn: Any) -> None:
    jobs = submit(conn, "embedding", 20) + submit(conn, "rerank", 5)
    jobs += submit(conn, "embedding", 3, model="another")
    begun: list[str] = []
    barrier = threading.Barrier(4)

    def slow(batch: Sequence[Job], _: Context) -> list[Outcome]:
        begun.append(batch[0].kind)
        if len(begun) <= barrier.parties:
            barrier.wait(20)
        return [DONE for _ in batch]

    handlers = {"embedding": slow, "rerank": slow}
    with runtime(clean, handlers, lanes=(LANE,), poll_s=600, interactive_batch_jobs=2) as worker:
        worker.start()
        worker.notify(LANE)
        eventually(lambda: done(conn, jobs))
    # Every slot of both kinds was taken before the first was released.
    assert not barrier.broken
    assert Counter(begun[:4]) == {"embedding": 2, "rerank": 2}


def test_long_batches_of_one_kind_leave_the_slots_of_another(clean: DevStack, conn: Any) -> None:
    release = threading.Event()

    def long(batch: Sequence[Job], _: Context) -> list[Outcome]:
        release.wait(120)
        return [DONE for _ in batch]

    handlers = {"embedding": succeed, "generation": long}
    with runtime(clean, handlers, lanes=(LANE,), poll_s=600) as worker:
        try:
            worker.start()
            stuck = submit(conn, "generation", 6)
            worker.notify(LANE)
            running = "SELECT count(*) FROM vestry.leases"
            with psycopg.connect(clean.superuser_url, autocommit=True) as admin:
                eventually(lambda: admin.execute(running).fetchone() == (2,))
            quick = submit(conn, "embedding")
            worker.notify(LANE)
            eventually(lambda: done(conn, quick))
        finally:
            release.set()
        eventually(lambda: done(conn, stuck))


def test_claim_skips_a_locked_job_and_takes_one_of_another_kind(clean: DevStack, conn: Any) -> None:
    (first,) = submit(conn, "embedding")
    (second,) = submit(conn, "rerank")
    kinds = ["embedding", "rerank"]
    url = clean.database_url("vestry_shareable")
    with psycopg.connect(url) as one, psycopg.connect(url) as other:
        claimed = claims.claim(one, POLICY, LANE, kinds)
        assert claimed is not None
        assert [job.id for job in claimed.jobs] == [first]
        assert claimed.more
        skipping = claims.claim(other, POLICY, LANE, kinds)
        assert skipping is not None
        assert [job.id for job in skipping.jobs] == [second]
        one.commit()
        other.commit()
        assert claims.claim(one, POLICY, LANE, kinds) is None


def test_claim_takes_the_head_of_all_queues_within_the_budget_of_its_kind(
    clean: DevStack, conn: Any
) -> None:
    reranks = submit(conn, "rerank", 3)
    embeddings = submit(conn, "embedding", 3)
    kinds, budgets = ["embedding", "rerank"], {"embedding": 1, "rerank": 2}
    with psycopg.connect(clean.database_url("vestry_shareable"), autocommit=True) as worker:
        claimed = []
        while lease := claims.claim(worker, POLICY, LANE, kinds, budgets=budgets):
            claimed.append(([job.id for job in lease.jobs], lease.more))
    singles = [([job], True) for job in embeddings[:2]] + [([embeddings[2]], False)]
    assert claimed == [(reranks[:2], True), (reranks[2:], True), *singles]


def test_kind_without_a_handler_stays_queued_and_delays_no_other(
    clean: DevStack, conn: Any
) -> None:
    unsupported = submit(conn, "generation", 2)
    with runtime(clean, {"embedding": succeed}, lanes=(LANE,), poll_s=0.05) as worker:
        worker.start()
        assert worker.on_hint(LANE, "generation", unsupported[0]) is None
        supported = submit(conn, "embedding", 5)
        eventually(lambda: done(conn, supported))
        time.sleep(0.5)
    rows = conn.execute(
        "SELECT DISTINCT state, attempt, quarantined FROM vestry.jobs WHERE id = ANY (%s)",
        [unsupported],
    ).fetchall()
    assert rows == [("queued", 0, False)]
