"""Jobs whose process ended: they run alone, at last, and hold up nobody."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from models import claims, transitions
from models.claims import LeasePolicy
from tasks.protocol import (
    Context,
    Job,
    Outcome,
)
from tests.job_helpers import VECTORS, state_and_attempt, submit, succeed_all, text_of
from tests.waiting import eventually
from tests.worker_runtime import LANE, runtime
from vestry import Vestry
from workers.stack.dev_stack import DevStack


def test_a_suspect_runs_while_nothing_else_does(
    clean: DevStack, vestry: Vestry, conn: Any, admin: Any
) -> None:
    spans: dict[str, tuple[float, float]] = {}

    def slow(batch: Sequence[Job], _: Context) -> list[Outcome]:
        begun = time.monotonic()
        time.sleep(0.15)
        spans.update({text_of(job): (begun, time.monotonic()) for job in batch})
        return [VECTORS for _ in batch]

    jobs = submit(vestry, conn, *(str(n) for n in range(10)))
    admin.execute("UPDATE vestry.jobs SET suspect = true WHERE id = %s", [jobs[0]])
    with runtime(clean, slow, batch_jobs=1) as worker:
        worker.start()
        eventually(lambda: len(spans) == 10)
    alone = spans.pop("0")
    assert all(end <= alone[0] or begun >= alone[1] for begun, end in spans.values())
    # The others did run beside each other, and did not all have to wait for the suspect.
    others = sorted(spans.values())
    assert any(a[1] > b[0] for a, b in itertools.pairwise(others))


def test_a_suspect_gets_its_turn_beside_long_work_that_never_lets_up(
    clean: DevStack, vestry: Vestry, conn: Any, admin: Any
) -> None:
    def long(batch: Sequence[Job], _: Context) -> list[Outcome]:
        # The first is shorter: no two ever end together.
        time.sleep(0.5 if text_of(batch[0]) == "0" else 1.0)
        return [VECTORS for _ in batch]

    jobs = submit(vestry, conn, *(str(n) for n in range(60)))
    suspect = submit(vestry, conn, "suspect")[0]
    admin.execute("UPDATE vestry.jobs SET suspect = true WHERE id = %s", [suspect])
    with runtime(clean, long, batch_jobs=1, slots=2, batch_s=0.1) as worker:
        worker.start()
        eventually(lambda: state_and_attempt(conn, suspect)[0] == "succeeded", within=25)
        assert state_and_attempt(conn, jobs[-1])[0] == "queued"


def test_many_suspects_let_others_in_between(
    clean: DevStack, vestry: Vestry, conn: Any, admin: Any
) -> None:
    ran: list[str] = []

    def slow(batch: Sequence[Job], _: Context) -> list[Outcome]:
        ran.extend(map(text_of, batch))
        time.sleep(0.2)
        return [VECTORS for _ in batch]

    suspects = submit(vestry, conn, *["suspect"] * 12)
    admin.execute("UPDATE vestry.jobs SET suspect = true WHERE id = ANY (%s)", [suspects])
    with runtime(clean, slow, batch_jobs=1, batch_s=0.3) as worker:
        alone = worker._run_lock.exclusive
        begun = threading.Event()

        @contextmanager
        def noted(patience_s: float) -> Iterator[bool]:
            with alone(patience_s) as empty:
                begun.set()
                yield empty

        worker._run_lock.exclusive = noted  # type: ignore[method-assign]
        worker.start()
        assert begun.wait(20)
        other = submit(vestry, conn, "other")[0]
        eventually(lambda: state_and_attempt(conn, other)[0] == "succeeded")
        eventually(lambda: all(state_and_attempt(conn, job)[0] == "succeeded" for job in suspects))
    assert ran.index("other") < 11


def test_a_suspect_is_found_behind_the_mark_of_the_ordinary_line(
    clean: DevStack, vestry: Vestry, conn: Any, control: Any
) -> None:
    """Its turn is the lane's when it was rescued; the line goes on, and its mark with it."""
    first = submit(vestry, conn, "a")[0]
    with psycopg.connect(clean.database_url("vestry_shareable")) as lost:
        assert claims.claim(lost, LeasePolicy("lost", "shareable", 0.001, 600), LANE, ["embedding"])
    eventually(lambda: transitions.rescue(control).suspects == 1)
    with runtime(clean, succeed_all) as worker:
        claim, marks = worker._executor.claim, worker._executor.marks
        for _ in range(3):
            submit(vestry, conn, "b")
            opened = claim(LANE, ["embedding"])
            assert opened is not None
            worker._executor.run(opened)
            marks[LANE, "embedding", False]._full_at = 0.0
        assert claim(LANE, ["embedding"]) is None
        opened = claim(LANE, ["embedding"], suspect=True)
        assert opened is not None
        assert [job.id for job in opened.lease.jobs] == [first]
        worker._executor.run(opened)


def test_nothing_begins_while_a_suspect_runs(
    clean: DevStack, vestry: Vestry, conn: Any, admin: Any
) -> None:
    begun: dict[str, float] = {}
    ended: dict[str, float] = {}

    def slow(batch: Sequence[Job], _: Context) -> list[Outcome]:
        begun.update({text_of(job): time.monotonic() for job in batch})
        time.sleep(0.5)
        ended.update({text_of(job): time.monotonic() for job in batch})
        return [VECTORS for _ in batch]

    (job,) = submit(vestry, conn, "suspect")
    admin.execute("UPDATE vestry.jobs SET suspect = true WHERE id = %s", [job])
    with runtime(clean, slow) as worker:
        worker.start()
        eventually(lambda: "suspect" in begun)
        submit(vestry, conn, "later")
        eventually(lambda: "later" in ended)
    assert begun["later"] >= ended["suspect"]


@pytest.mark.parametrize("kept", ["paused", "out of time"])
def test_a_suspect_that_may_not_run_stops_nobody(
    clean: DevStack, vestry: Vestry, conn: Any, admin: Any, kept: str
) -> None:
    job = submit(vestry, conn, "a")[0]
    admin.execute("UPDATE vestry.jobs SET suspect = true WHERE id = %s", [job])
    with runtime(clean, succeed_all) as worker:
        assert worker._lines_with_quarantined() == [(LANE, "embedding")]
        if kept == "paused":
            admin.execute("UPDATE vestry.lanes SET paused_at = now() WHERE lane = %s", [LANE])
        else:
            admin.execute("UPDATE vestry.jobs SET deadline = now() WHERE id = %s", [job])
        assert worker._lines_with_quarantined() == []
