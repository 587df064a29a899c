"""Quarantined jobs run exclusively, are run in the end, and delay no other job for long."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence
from typing import Any

import psycopg
import pytest

from models import claims, transitions
from models.claims import Lease, LeasePolicy
from tasks.protocol import (
    Context,
    Job,
    Outcome,
)
from tests.in_process_fetcher import LANE, runtime
from tests.job_helpers import VECTORS, state_and_attempt, submit, succeed_all, text_of
from tests.waiting import eventually
from vestry import Vestry
from workers import failpoints
from workers.stack.dev_stack import DevStack


def test_quarantined_job_runs_while_no_other_does(
    clean: DevStack, vestry: Vestry, conn: Any, admin: Any
) -> None:
    spans: dict[str, tuple[float, float]] = {}

    def slow(batch: Sequence[Job], _: Context) -> list[Outcome]:
        begun = time.monotonic()
        time.sleep(0.15)
        spans.update({text_of(job): (begun, time.monotonic()) for job in batch})
        return [VECTORS for _ in batch]

    jobs = submit(vestry, conn, *(str(n) for n in range(10)))
    admin.execute("UPDATE vestry.jobs SET quarantined = true WHERE id = %s", [jobs[0]])
    with runtime(clean, slow, batch_jobs=1) as worker:
        worker.start()
        eventually(lambda: len(spans) == 10)
    exclusive = spans.pop("0")
    assert all(end <= exclusive[0] or begun >= exclusive[1] for begun, end in spans.values())
    # The others ran in parallel, and not all of them after the quarantined job.
    others = sorted(spans.values())
    assert any(a[1] > b[0] for a, b in itertools.pairwise(others))


def test_quarantined_job_runs_beside_a_series_of_long_batches(
    clean: DevStack, vestry: Vestry, conn: Any, admin: Any
) -> None:
    def long(batch: Sequence[Job], _: Context) -> list[Outcome]:
        # The first is shorter, so that no two end together.
        time.sleep(0.5 if text_of(batch[0]) == "0" else 1.0)
        return [VECTORS for _ in batch]

    jobs = submit(vestry, conn, *(str(n) for n in range(60)))
    quarantined = submit(vestry, conn, "quarantined")[0]
    admin.execute("UPDATE vestry.jobs SET quarantined = true WHERE id = %s", [quarantined])
    with runtime(clean, long, batch_jobs=1, slots=2, batch_s=0.1) as worker:
        worker.start()
        eventually(lambda: state_and_attempt(conn, quarantined)[0] == "succeeded", within=25)
        assert state_and_attempt(conn, jobs[-1])[0] == "queued"


def test_other_jobs_run_between_many_quarantined_ones(
    clean: DevStack, vestry: Vestry, conn: Any, admin: Any
) -> None:
    ran: list[str] = []
    first_exclusive = threading.Event()

    def after_claim(lease: Lease) -> None:
        if lease.exclusive:
            first_exclusive.set()

    def slow(batch: Sequence[Job], _: Context) -> list[Outcome]:
        ran.extend(map(text_of, batch))
        time.sleep(0.2)
        return [VECTORS for _ in batch]

    jobs = submit(vestry, conn, *["quarantined"] * 12)
    admin.execute("UPDATE vestry.jobs SET quarantined = true WHERE id = ANY (%s)", [jobs])
    with (
        failpoints.installed({failpoints.AFTER_CLAIM: after_claim}),
        runtime(clean, slow, batch_jobs=1, batch_s=0.3) as worker,
    ):
        worker.start()
        assert first_exclusive.wait(20)
        other = submit(vestry, conn, "other")[0]
        eventually(lambda: state_and_attempt(conn, other)[0] == "succeeded")
        eventually(lambda: all(state_and_attempt(conn, job)[0] == "succeeded" for job in jobs))
    assert ran.index("other") < 11


def test_quarantined_job_behind_the_low_water_mark_is_claimed(
    clean: DevStack, vestry: Vestry, conn: Any, control: Any
) -> None:
    """Its start tag is the lane's at its rescue; the ordinary queue's mark moves past it."""
    first = submit(vestry, conn, "a")[0]
    with psycopg.connect(clean.database_url("vestry_shareable")) as lost:
        assert claims.claim(lost, LeasePolicy("lost", "shareable", 0.001, 600), LANE, ["embedding"])
    eventually(lambda: transitions.rescue(control).quarantined == 1)
    with runtime(clean, succeed_all) as worker:
        claim, marks = worker.executor.claim, worker.executor.marks
        for _ in range(3):
            submit(vestry, conn, "b")
            batch = claim(LANE, ["embedding"])
            assert batch is not None
            worker.executor.run(batch)
            marks[LANE, "embedding", False]._full_at = 0.0
        assert claim(LANE, ["embedding"]) is None
        batch = claim(LANE, ["embedding"], quarantined=True)
        assert batch is not None
        assert [job.id for job in batch.lease.jobs] == [first]
        worker.executor.run(batch)


def test_no_batch_begins_during_an_exclusive_run(
    clean: DevStack, vestry: Vestry, conn: Any, admin: Any
) -> None:
    begun: dict[str, float] = {}
    ended: dict[str, float] = {}

    def slow(batch: Sequence[Job], _: Context) -> list[Outcome]:
        begun.update({text_of(job): time.monotonic() for job in batch})
        time.sleep(0.5)
        ended.update({text_of(job): time.monotonic() for job in batch})
        return [VECTORS for _ in batch]

    (job,) = submit(vestry, conn, "quarantined")
    admin.execute("UPDATE vestry.jobs SET quarantined = true WHERE id = %s", [job])
    with runtime(clean, slow) as worker:
        worker.start()
        eventually(lambda: "quarantined" in begun)
        submit(vestry, conn, "later")
        eventually(lambda: "later" in ended)
    assert begun["later"] >= ended["quarantined"]


@pytest.mark.parametrize("reason", ["lane paused", "deadline passed"])
def test_quarantined_job_that_may_not_run_causes_no_exclusive_run(
    clean: DevStack, vestry: Vestry, conn: Any, admin: Any, reason: str
) -> None:
    job = submit(vestry, conn, "a")[0]
    admin.execute("UPDATE vestry.jobs SET quarantined = true WHERE id = %s", [job])
    with runtime(clean, succeed_all) as worker:
        assert worker._queues_with_quarantined() == [(LANE, "embedding")]
        if reason == "lane paused":
            admin.execute("UPDATE vestry.lanes SET paused_at = now() WHERE lane = %s", [LANE])
        else:
            admin.execute("UPDATE vestry.jobs SET deadline = now() WHERE id = %s", [job])
        assert worker._queues_with_quarantined() == []
