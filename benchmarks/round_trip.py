"""One interactive round trip at a time, against bare Celery with a Redis result backend.

Vestry: enqueue in a transaction, commit, wait for the result. Celery: `delay(…).get()`. Both sides use
open connections and the same broker, in alternating blocks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import psycopg

from benchmarks.bare_celery import BareWorker, bare_worker
from benchmarks.bench_stack import NO_OP, BenchStack, bench_stack, check_all_succeeded
from benchmarks.options import Options
from benchmarks.report import BenchmarkResult, percentile
from vestry import Embedding
from workers.settings import Settings
from workers.worker import SPARE_THREADS

AIM = 2.5
BLOCK = 25
WARM_UP = 30


def run(options: Options) -> BenchmarkResult:
    """Alternate blocks of both sides."""
    result = BenchmarkResult("One interactive round trip")
    trips = options.scaled(300)
    threads = Settings.model_fields["slots"].default + SPARE_THREADS
    vestry_ms: list[float] = []
    celery_ms: list[float] = []
    with (
        bench_stack(NO_OP, ["dispatcher", "reconciler", "private-interactive-gpu"]) as stack,
        psycopg.connect(stack.processes.client["database_url"]) as conn,
        bare_worker(
            stack.valkey, threads, stack.processes.home / "logs" / "bare.log", events=True
        ) as worker,
    ):
        sides: list[tuple[list[float], Callable[[], None]]] = [
            (vestry_ms, lambda: _vestry(stack, conn)),
            (celery_ms, lambda: _celery(worker)),
        ]
        for _, trip in sides:
            _time_trips(trip, WARM_UP)
        since = stack.database_time()
        while len(celery_ms) < trips:
            for times, trip in sides:
                times.extend(_time_trips(trip, BLOCK))
        check_all_succeeded(stack)
        stages = _stages(stack, since)
        hinted = stack.scalar(
            """SELECT count(*) FROM vestry.jobs
               WHERE extract(epoch FROM created_at) >= %s AND hinted_at IS NOT NULL""",
            since,
        )
    result.rounds = {"vestry ms": vestry_ms, "celery ms": celery_ms}
    for name, times in (("Vestry", vestry_ms), ("bare Celery", celery_ms)):
        result.add(f"{name} p50", median(times), "ms", note=f"{len(times)} trips, one at a time")
        result.add(f"{name} p95", percentile(times, 0.95), "ms")
    result.add("ratio of p50", median(vestry_ms) / median(celery_ms), "x", at_most=AIM)
    ratio = percentile(vestry_ms, 0.95) / percentile(celery_ms, 0.95)
    result.add("ratio of p95", ratio, "x", at_most=AIM)
    note = "the others were claimed after a notification, before the dispatcher"
    result.add("claimed with a hint", hinted, "trips", note=note)
    for name, value in stages.items():
        result.add(f"  {name}", value, "ms", note="median, by the database's clock")
    return result


def _time_trips(trip: Callable[[], None], count: int) -> list[float]:
    """Durations of round trips, in milliseconds."""
    times: list[float] = []
    for _ in range(count):
        started = time.perf_counter()
        trip()
        times.append((time.perf_counter() - started) * 1000)
    return times


def _vestry(stack: BenchStack, conn: psycopg.Connection[Any]) -> None:
    job = stack.vestry.enqueue(
        conn, Embedding(texts=["x"]), owner="ann", privacy="private", latency="interactive"
    )
    conn.commit()
    stack.vestry.wait(job, timeout=10)


def _celery(worker: BareWorker) -> None:
    assert worker.app.tasks["echo"].delay("x").get(timeout=10) == "x"


def _stages(stack: BenchStack, since: float) -> dict[str, float]:
    """Median durations between the timestamps of a job's row, in milliseconds."""
    rows = stack.admin.execute(
        """SELECT extract(epoch FROM started_at - created_at)::float8,
                  extract(epoch FROM finished_at - started_at)::float8
           FROM vestry.jobs WHERE extract(epoch FROM created_at) >= %s""",
        [since],
    ).fetchall()
    names = ("enqueued → claimed", "claimed → finished, before its commit")
    return {
        name: median(times) * 1000
        for name, times in zip(names, zip(*rows, strict=True), strict=True)
    }
