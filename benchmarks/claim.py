"""Duration of a claim with 1,000, 100,000 and 1,000,000 queued jobs, and with a held snapshot.

No workers run: the benchmark claims as a worker does, and commits to disk.
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
from benchmarks.report import BenchmarkResult, percentile
from models import claims, transitions
from models.claims import PLANNER_OPTIONS, Lease, LeasePolicy, LowWaterMark
from models.states import State
from models.transitions import Settlement
from workers.stack.dev_stack import DevStack
from workers.stack.server_dir import remove

Connection = psycopg.Connection[Any]

LANE = "private.bulk.gpu"
POLICY = LeasePolicy(worker="benchmark", privacy="private", lease_s=600, max_run_s=3600)
SIZES = (1_000, 100_000, 1_000_000)
BATCH = 64
CLAIMS = 60
SNAPSHOT_CLAIMS = 200_000
"""Jobs claimed while a snapshot is held."""
DRAIN_BATCH = 256
MAX_RATIO = 2.0
"""Aim: ratio of a claim's duration to that with the shortest queue."""


def run(options: Options) -> BenchmarkResult:
    """Measure claims at increasing queue lengths."""
    result = BenchmarkResult("Claiming, as the backlog grows")
    home = Path(tempfile.mkdtemp(prefix="vestry-bench-"))
    try:
        with (
            DevStack(home) as stack,
            psycopg.connect(stack.superuser_url, autocommit=True) as admin,
            psycopg.connect(
                stack.database_url("vestry_private"), options=PLANNER_OPTIONS, autocommit=True
            ) as worker,
        ):
            _measure(result, options, stack, admin, worker)
    finally:
        remove(home)
    return result


def _measure(
    result: BenchmarkResult,
    options: Options,
    stack: DevStack,
    admin: Connection,
    worker: Connection,
) -> None:
    mark = LowWaterMark()
    baseline: dict[str, float] = {}
    for size in (options.scaled(size) for size in SIZES):
        queued = admin.execute("SELECT count(*) FROM vestry.jobs WHERE state = 'queued'").fetchone()
        assert queued is not None
        _enqueue(admin, size - queued[0])
        admin.execute("VACUUM ANALYZE vestry.jobs")
        _time_claims(result, f"{size:,} queued", (admin, worker), mark, baseline)
    with psycopg.connect(stack.superuser_url) as holder:
        holder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        holder.execute("SELECT count(*) FROM vestry.lanes")
        claimed, started = 0, time.perf_counter()
        goal = min(options.scaled(SNAPSHOT_CLAIMS), options.scaled(SIZES[-1]) - 2 * CLAIMS * BATCH)
        while claimed < goal:
            claimed += len(_claim(worker, mark, DRAIN_BATCH).jobs)
        rate = claimed / (time.perf_counter() - started)
        name = f"{claimed:,} claimed while a snapshot is held"
        result.add(name, rate, "claims/s", note=f"in batches of {DRAIN_BATCH}, and finished")
        name = "then, the snapshot still held"
        _time_claims(result, name, (admin, worker), mark, baseline)


def _time_claims(
    result: BenchmarkResult, name: str, connections: tuple[Connection, Connection], mark: LowWaterMark,
    baseline: dict[str, float],
) -> None:  # fmt: skip
    """Time claims of a batch and of one hinted job in alternation; replace the claimed jobs.

    The median of the first call is the baseline of the ratios.
    """
    admin, worker = connections
    batches: list[float] = []
    hinted: list[float] = []
    for _ in range(CLAIMS):
        started = time.perf_counter()
        _claim(worker, mark, BATCH, finish=False)
        batches.append((time.perf_counter() - started) * 1000)
        job = _last_queued_job(admin)
        started = time.perf_counter()
        _claim(worker, mark, 1, hint=job, finish=False)
        hinted.append((time.perf_counter() - started) * 1000)
        _enqueue(admin, BATCH + 1)
    for claim, times in ((f"batch of {BATCH}", batches), ("one hinted job", hinted)):
        result.rounds[f"{name}, {claim}, ms"] = times
        result.add(
            f"{name}: {claim}", median(times), "ms", note=f"p95 {percentile(times, 0.95):.1f} ms",
        )  # fmt: skip
    shortest = baseline.setdefault("batch", median(batches))
    if median(batches) != shortest:
        ratio = median(batches) / shortest
        result.add("  times the shortest queue's", ratio, "x", at_most=MAX_RATIO)


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
            worker, POLICY, LANE, ["embedding"], hint=hint, limit=limit, marks=marks
        )
    if lease is None:
        raise RuntimeError("there was no job to claim")
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


def _last_queued_job(admin: Connection) -> UUID:
    row = admin.execute(
        """SELECT id FROM vestry.jobs WHERE lane = %s AND state = 'queued'
           ORDER BY lane DESC, kind DESC, start_tag DESC, id DESC LIMIT 1""",
        [LANE],
    ).fetchone()
    assert row is not None
    job: UUID = row[0]
    return job


def _enqueue(admin: Connection, count: int) -> None:
    """Append jobs to the queue, of a hundred owners in rotation."""
    admin.execute(
        """INSERT INTO vestry.jobs (id, kind, owner, privacy, latency, pool, start_tag)
           SELECT uuidv7(), 'embedding', 'owner-' || n %% 100, 'private', 'bulk', 'gpu',
                  coalesce((SELECT max(start_tag) FROM vestry.jobs WHERE state = 'queued'), 0) + n
           FROM generate_series(1, %s) n""",
        [count],
    )
