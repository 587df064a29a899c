"""One interactive round trip at a time, against bare Celery with a Redis result backend.

Vestry: enqueue in a transaction, commit, wait for the result. Celery: `delay(…).get()`. Connections
are open on both sides, the same broker serves both, and they take turns in blocks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import psycopg

from benchmarks.bare_celery import BareWorker, bare_worker
from benchmarks.options import Options
from benchmarks.report import Outcome, percentile
from benchmarks.stand import NO_OP, Stand, stand, worker_settled
from vestry import Embedding
from workers.settings import Settings
from workers.worker import SPARE_THREADS

AIM = 2.5
BLOCK = 25
WARM = 30


def run(options: Options) -> Outcome:
    """Alternate blocks of both."""
    outcome = Outcome("One interactive round trip")
    trips = options.scaled(300)
    threads = Settings.model_fields["slots"].default + SPARE_THREADS
    ours: list[float] = []
    theirs: list[float] = []
    with (
        stand(NO_OP, ["dispatcher", "reconciler", "private-interactive-gpu"]) as place,
        psycopg.connect(place.up.client["database_url"]) as conn,
        bare_worker(
            place.valkey, threads, place.up.home / "logs" / "bare.log", events=True
        ) as worker,
    ):
        sides: list[tuple[list[float], Callable[[], None]]] = [
            (ours, lambda: _vestry(place, conn)),
            (theirs, lambda: _celery(worker)),
        ]
        for _, trip in sides:
            _block(trip, WARM)
        since = place.now()
        while len(theirs) < trips:
            for times, trip in sides:
                times.extend(_block(trip, BLOCK))
        worker_settled(place)
        stages = _stages(place, since)
        hinted = place.one(
            """SELECT count(*) FROM vestry.jobs
               WHERE extract(epoch FROM created_at) >= %s AND hinted_at IS NOT NULL""",
            since,
        )
    outcome.rounds = {"vestry ms": ours, "celery ms": theirs}
    for name, times in (("Vestry", ours), ("bare Celery", theirs)):
        outcome.add(f"{name} p50", median(times), "ms", note=f"{len(times)} trips, one at a time")
        outcome.add(f"{name} p95", percentile(times, 0.95), "ms")
    outcome.add("ratio of p50", median(ours) / median(theirs), "x", at_most=AIM)
    ratio = percentile(ours, 0.95) / percentile(theirs, 0.95)
    outcome.add("ratio of p95", ratio, "x", at_most=AIM)
    outcome.add("given a hint", hinted, "trips", note="the others were heard of and taken before")
    for name, value in stages.items():
        outcome.add(f"  {name}", value, "ms", note="median, by the database's clock")
    return outcome


def _block(trip: Callable[[], None], count: int) -> list[float]:
    times: list[float] = []
    for _ in range(count):
        begun = time.perf_counter()
        trip()
        times.append((time.perf_counter() - begun) * 1000)
    return times


def _vestry(place: Stand, conn: psycopg.Connection[Any]) -> None:
    job = place.vestry.enqueue(
        conn, Embedding(texts=["x"]), owner="ann", privacy="private", latency="interactive"
    )
    conn.commit()
    place.vestry.wait(job, timeout=10)


def _celery(worker: BareWorker) -> None:
    assert worker.app.tasks["echo"].delay("x").get(timeout=10) == "x"


def _stages(place: Stand, since: float) -> dict[str, float]:
    """Medians between the moments that a job's row keeps."""
    rows = place.admin.execute(
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
