"""Execution of jobs by one worker, one guarantee per test, without dispatcher and reconciler.

The worker runs in this process, on handlers of the tests.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import psycopg

from models import transitions
from tasks.protocol import (
    Context,
    Handler,
    IndexDocument,
    Job,
    Outcome,
    Succeeded,
)
from tests.in_process_fetcher import LANE, runtime
from tests.job_helpers import VECTORS, state_and_attempt, submit, succeed_all, text_of
from tests.waiting import eventually
from vestry import Document, Embedding, Vestry
from workers import failpoints
from workers.stack.dev_stack import DevStack


def test_job_without_a_hint_is_fetched(clean: DevStack, vestry: Vestry, conn: Any) -> None:
    with runtime(clean, succeed_all) as worker:
        worker.start()
        (job,) = submit(vestry, conn, "no dispatcher runs")
        eventually(lambda: state_and_attempt(conn, job) == ("succeeded", 1), within=30)


def test_job_longer_than_its_lease_is_run_once(
    clean: DevStack, vestry: Vestry, conn: Any, control: Any
) -> None:
    ran = []

    def slow(batch: Sequence[Job], _: Context) -> list[Outcome]:
        ran.extend(batch)
        time.sleep(8)
        return [VECTORS for _ in batch]

    with runtime(clean, slow, lease_s=6, heartbeat_s=0.3) as worker:
        worker.start()
        (job,) = submit(vestry, conn, "long")
        until = time.monotonic() + 40
        while state_and_attempt(conn, job)[0] != "succeeded":
            assert transitions.rescue(control).quarantined == 0
            assert time.monotonic() < until
            time.sleep(0.1)
    assert len(ran) == 1


def test_hint_for_a_lane_that_is_not_served_is_ignored(
    clean: DevStack, vestry: Vestry, conn: Any
) -> None:
    (job,) = submit(vestry, conn, "x", latency="interactive")
    with runtime(clean, succeed_all) as worker:
        assert worker.on_hint("shareable.interactive.gpu", "embedding", job) is None
        assert state_and_attempt(conn, job) == ("queued", 0)
        (hinted,) = submit(vestry, conn, "y")
        assert worker.on_hint(LANE, "embedding", hinted) is not None
    assert state_and_attempt(conn, hinted) == ("succeeded", 1)


def test_batch_claimed_while_draining_is_released_unrun(
    clean: DevStack, vestry: Vestry, conn: Any
) -> None:
    def never(_: Sequence[Job], __: Context) -> list[Outcome]:
        raise AssertionError

    (job,) = submit(vestry, conn, "x")
    with runtime(clean, never) as worker:
        worker.drain()
        assert worker.on_hint(LANE, "embedding", job) is None
        assert state_and_attempt(conn, job) == ("queued", 0)
        # The signal may also arrive between that check and the claim.
        assert worker._claim_and_run(LANE, "embedding") is None
        assert state_and_attempt(conn, job) == ("queued", 0)


def run_once(stack: DevStack, handler: Handler) -> None:
    with runtime(stack, handler) as worker:
        batch = worker.executor.claim(LANE, ["embedding"])
        assert batch is not None
        worker.executor.run(batch)


def test_handler_that_raises_fails_one_job_and_no_other_of_its_batch(
    clean: DevStack, vestry: Vestry, conn: Any
) -> None:
    def failing(batch: Sequence[Job], _: Context) -> list[Outcome]:
        if any(text_of(job) == "bad" for job in batch):
            raise ZeroDivisionError
        return [VECTORS for _ in batch]

    before, bad, after = submit(vestry, conn, "before", "bad", "after", max_attempts=1)
    run_once(clean, failing)
    assert state_and_attempt(conn, before) == state_and_attempt(conn, after) == ("succeeded", 1)
    assert state_and_attempt(conn, bad) == ("dead", 1)


def test_handler_that_returns_too_few_outcomes_is_run_job_by_job(
    clean: DevStack, vestry: Vestry, conn: Any
) -> None:
    jobs = submit(vestry, conn, "a", "b", max_attempts=1)
    run_once(clean, lambda _, __: [VECTORS])
    assert [state_and_attempt(conn, job) for job in jobs] == [("succeeded", 1)] * 2


def test_result_that_cannot_be_stored_fails_no_other_job_of_its_batch(
    clean: DevStack, vestry: Vestry, conn: Any
) -> None:
    def handle(batch: Sequence[Job], _: Context) -> list[Outcome]:
        (ref,) = next(job.documents for job in batch if job.documents)
        unstorable = IndexDocument(ref.document_id, ref.generation, "s", 999, b"", {}, [], True)
        count = {"documents": 1, "embedded": 1, "unchanged": 0, "superseded": 0, "chunks": 0}
        return [Succeeded(count, (unstorable,)) if job.documents else VECTORS for job in batch]

    before, after = submit(vestry, conn, "before", "after")
    (bad,) = vestry.enqueue_many(
        conn,
        [Embedding(documents=[Document("x", "id")], source="s")],
        owner="ann",
        privacy="shareable",
    )
    run_once(clean, handle)
    assert state_and_attempt(conn, before) == state_and_attempt(conn, after) == ("succeeded", 1)
    assert vestry.status(bad).error is not None
    assert vestry.status(bad).error[0] == "not_storable"  # type: ignore[index]


def test_finish_is_repeated_after_a_transaction_timeout(
    clean: DevStack, vestry: Vestry, conn: Any
) -> None:
    job = submit(vestry, conn, "a", max_attempts=1)[0]
    attempts = []

    def time_out_once(*_: Any) -> None:
        attempts.append(job)
        if len(attempts) == 1:
            raise psycopg.errors.TransactionTimeout

    with (
        failpoints.installed({failpoints.INSIDE_FINISH: time_out_once}),
        runtime(clean, succeed_all) as worker,
    ):
        worker.start()
        eventually(lambda: state_and_attempt(conn, job) == ("succeeded", 1))
    assert len(attempts) == 2


def test_result_that_cannot_be_encoded_fails_no_other_job_of_its_batch(
    clean: DevStack, vestry: Vestry, conn: Any
) -> None:
    def handle(batch: Sequence[Job], _: Context) -> list[Outcome]:
        unencodable = Succeeded({"vectors": [[1.0]], "space": "\ud800"})
        return [unencodable if text_of(job) == "bad" else VECTORS for job in batch]

    good, bad = submit(vestry, conn, "good", "bad")
    run_once(clean, handle)
    assert state_and_attempt(conn, good) == ("succeeded", 1)
    assert vestry.status(bad).error is not None
    assert vestry.status(bad).error[0] == "not_storable"  # type: ignore[index]
