"""One claim with 1,000, 100,000 and 1,000,000 jobs in line, and under a snapshot held open.

No workers run: the claims are made here, as a worker makes them, and committed to disk.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any
from uuid import UUID

import psycopg

from benchmarks.options import Options
from benchmarks.report import Outcome, percentile
from models import claims, transitions
from models.claims import PLANNER_OPTIONS, Lease, LeasePolicy, LowWaterMark
from models.states import State
from models.transitions import Settlement
from workers.stack.dev_stack import DevStack
from workers.stack.server_dir import remove

Connection = psycopg.Connection[Any]

LANE = "private.bulk.gpu"
TERMS = LeasePolicy(worker="benchmark", privacy="private", lease_s=600, max_run_s=3600)
SIZES = (1_000, 100_000, 1_000_000)
BATCH = 64
CLAIMS = 60
UNDER_SNAPSHOT = 200_000
DRAIN_BATCH = 256
FLAT = 2.0
"""Times as long as with the shortest line, at most: the project's own aim."""


def run(options: Options) -> Outcome:
    """Fill the line step by step and claim at each length."""
    outcome = Outcome("Claiming, as the backlog grows")
    home = Path(tempfile.mkdtemp(prefix="vestry-bench-"))
    try:
        with (
            DevStack(home) as stack,
            psycopg.connect(stack.superuser_url, autocommit=True) as admin,
            psycopg.connect(
                stack.database_url("vestry_private"), options=PLANNER_OPTIONS, autocommit=True
            ) as worker,
        ):
            _measure(outcome, options, stack, admin, worker)
    finally:
        remove(home)
    return outcome


def _measure(
    outcome: Outcome, options: Options, stack: DevStack, admin: Connection, worker: Connection
) -> None:
    mark = LowWaterMark()
    first: dict[str, float] = {}
    for size in (options.scaled(size) for size in SIZES):
        waiting = admin.execute(
            "SELECT count(*) FROM vestry.jobs WHERE state = 'queued'"
        ).fetchone()
        assert waiting is not None
        _fill(admin, size - waiting[0])
        admin.execute("VACUUM ANALYZE vestry.jobs")
        _claims(outcome, f"{size:,} queued", (admin, worker), mark, first)
    with psycopg.connect(stack.superuser_url) as holder:
        holder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        holder.execute("SELECT count(*) FROM vestry.lanes")
        claimed, begun = 0, time.perf_counter()
        goal = min(options.scaled(UNDER_SNAPSHOT), options.scaled(SIZES[-1]) - 2 * CLAIMS * BATCH)
        while claimed < goal:
            claimed += len(_claim(worker, mark, DRAIN_BATCH).jobs)
        rate = claimed / (time.perf_counter() - begun)
        name = f"{claimed:,} claimed while a snapshot is held"
        outcome.add(name, rate, "claims/s", note=f"in batches of {DRAIN_BATCH}, finished as well")
        _claims(outcome, "then, the snapshot still held", (admin, worker), mark, first)


def _claims(
    outcome: Outcome, name: str, connections: tuple[Connection, Connection], mark: LowWaterMark,
    first: dict[str, float],
) -> None:  # fmt: skip
    """Time claims of a batch and claims of one hinted job, alternately; refill what they took."""
    admin, worker = connections
    batches: list[float] = []
    hinted: list[float] = []
    for _ in range(CLAIMS):
        begun = time.perf_counter()
        _claim(worker, mark, BATCH, finish=False)
        batches.append((time.perf_counter() - begun) * 1000)
        job = _some_job(admin)
        begun = time.perf_counter()
        _claim(worker, mark, 1, hint=job, finish=False)
        hinted.append((time.perf_counter() - begun) * 1000)
        _fill(admin, BATCH + 1)
    for what, times in ((f"batch of {BATCH}", batches), ("one hinted job", hinted)):
        outcome.rounds[f"{name}, {what}, ms"] = times
        outcome.add(
            f"{name}: {what}", median(times), "ms", note=f"p95 {percentile(times, 0.95):.1f} ms",
        )  # fmt: skip
    usual = first.setdefault("batch", median(batches))
    if median(batches) != usual:
        outcome.add("  times the shortest line's", median(batches) / usual, "x", at_most=FLAT)


def _claim(
    worker: Connection,
    mark: LowWaterMark,
    limit: int,
    *,
    hint: UUID | None = None,
    finish: bool = True,
) -> Lease:
    with worker.transaction():
        marks = {"embedding": mark}
        lease = claims.claim(
            worker, TERMS, LANE, ["embedding"], hint=hint, limit=limit, marks=marks
        )
    if lease is None:
        raise RuntimeError("nothing was there to claim")
    if finish:
        with worker.transaction():
            held = transitions.lock_held(
                worker,
                lease.id,
                [job.id for job in lease.jobs],
                owners={job.owner for job in lease.jobs},
            )
            transitions.settle(worker, lease.id, [Settlement(i, State.SUCCEEDED) for i in held])
    return lease


def _some_job(admin: Connection) -> UUID:
    row = admin.execute(
        """SELECT id FROM vestry.jobs WHERE lane = %s AND state = 'queued'
           ORDER BY lane DESC, kind DESC, start_tag DESC, id DESC LIMIT 1""",
        [LANE],
    ).fetchone()
    assert row is not None
    found: UUID = row[0]
    return found


def _fill(admin: Connection, count: int) -> None:
    """Put jobs at the end of the line, those of a hundred owners taking turns."""
    admin.execute(
        """INSERT INTO vestry.jobs (id, kind, owner, privacy, latency, pool, start_tag)
           SELECT uuidv7(), 'embedding', 'owner-' || n %% 100, 'private', 'bulk', 'gpu',
                  coalesce((SELECT max(start_tag) FROM vestry.jobs WHERE state = 'queued'), 0) + n
           FROM generate_series(1, %s) n""",
        [count],
    )
