"""Durable bulk no-op jobs per second, against bare Celery's no-op tasks on the same broker.

Both backlogs are enqueued before the measurement: Vestry's in a paused lane, Celery's with its
consumer cancelled. A Vestry job commits a sealed payload, a sealed result, a receipt and its row, with
fsync on; a Celery task stores nothing.
"""

from __future__ import annotations

import time
from statistics import median

from benchmarks.bare_celery import BareWorker, bare_worker
from benchmarks.bench_stack import (
    NO_OP,
    BenchStack,
    bench_stack,
    check_all_succeeded,
    wait_until,
    wait_until_drained,
)
from benchmarks.options import Options
from benchmarks.report import BenchmarkResult, median_ratio
from vestry import Embedding
from workers.settings import Settings
from workers.stack.embedded_stack import BULK_NICE
from workers.worker import SPARE_THREADS

LANE = "private.bulk.gpu"
AIM = 10.0
OWNERS = 4


def run(options: Options) -> BenchmarkResult:
    """Alternate rounds of Vestry and Celery."""
    result = BenchmarkResult("No-op jobs in bulk")
    jobs, tasks = options.scaled(20_000), options.scaled(4_000)
    threads = Settings.model_fields["slots"].default + SPARE_THREADS
    vestry_rates: list[float] = []
    enqueued: list[float] = []
    celery_rates: list[float] = []
    quiet_celery_rates: list[float] = []
    with bench_stack(NO_OP, ["dispatcher", "reconciler", "private-bulk-gpu"]) as stack:
        log = stack.processes.home / "logs" / "bare.log"
        # One Celery worker at a time: an idle one with events on still sends heartbeats.
        _vestry(stack, options.scaled(2_000))
        for _ in range(options.rounds):
            enqueue_rate, rate = _vestry(stack, jobs)
            enqueued.append(enqueue_rate)
            vestry_rates.append(rate)
            for events, rates in ((True, celery_rates), (False, quiet_celery_rates)):
                with bare_worker(
                    stack.valkey, threads, log, events=events, nice=BULK_NICE
                ) as worker:
                    _celery(worker, options.scaled(500))
                    rates.append(_celery(worker, tasks))
        check_all_succeeded(stack)
    result.rounds = {
        "vestry jobs/s": vestry_rates,
        "vestry enqueued/s": enqueued,
        "celery tasks/s, events on": celery_rates,
        "celery tasks/s, events off": quiet_celery_rates,
    }
    result.add(
        "Vestry", median(vestry_rates), "jobs/s", note=f"{jobs:,} private jobs, one worker process"
    )
    result.add(
        "bare Celery", median(celery_rates), "tasks/s",
        note=f"{tasks:,} tasks, one worker process, {threads} threads, events on as Vestry has them",
    )  # fmt: skip
    result.add("ratio", median_ratio(vestry_rates, celery_rates), "x", at_least=AIM)
    result.add("bare Celery, events off", median(quiet_celery_rates), "tasks/s")
    result.add("ratio with events off", median_ratio(vestry_rates, quiet_celery_rates), "x")
    note = "sealed, one transaction per owner"
    result.add("enqueue_many", median(enqueued), "jobs/s", note=note)
    return result


def _vestry(stack: BenchStack, count: int) -> tuple[float, float]:
    """Jobs enqueued per second, and jobs finished per second after the lane is resumed."""
    stack.vestry.pause_lane(LANE)
    started = time.perf_counter()
    for number in range(OWNERS):
        stack.vestry.enqueue_many(
            stack.conn,
            (Embedding(texts=["x"]) for _ in range(count // OWNERS)),
            owner=f"owner-{number}",
            privacy="private",
        )
    enqueued = time.perf_counter() - started
    since = stack.database_time()
    stack.vestry.resume_lane(LANE)
    wait_until_drained(stack, LANE, within=300)
    row = stack.admin.execute(
        """SELECT count(*), extract(epoch FROM max(j.finished_at))::float8, count(r.job_id),
                  count(t.job_id)
           FROM vestry.jobs j LEFT JOIN vestry.private_results r ON r.job_id = j.id
           LEFT JOIN vestry.receipts t ON t.job_id = j.id
           WHERE extract(epoch FROM j.finished_at) >= %s AND j.state = 'succeeded'""",
        [since],
    ).fetchone()
    assert row is not None
    jobs = count // OWNERS * OWNERS
    if {row[0], row[2], row[3]} != {jobs}:
        raise RuntimeError(f"{jobs} jobs, but {row[0]} done, {row[2]} results, {row[3]} receipts")
    return jobs / enqueued, jobs / (row[1] - since)


def _celery(worker: BareWorker, count: int) -> float:
    """Tasks per second from the start of the consumer until the queue is empty."""
    worker.pause()
    before = worker.done("nothing")
    with worker.app.producer_pool.acquire(block=True) as producer:
        for number in range(count):
            worker.app.send_task("nothing", args=(number,), producer=producer)
    started = time.perf_counter()
    worker.resume()
    wait_until(lambda: worker.waiting() == 0, within=300, every=0.005)
    seconds = time.perf_counter() - started
    # The threads still run up to a dozen tasks; their end is checked outside the measurement.
    wait_until(lambda: worker.done("nothing") - before == count, within=30)
    return count / seconds
