"""Durable no-op jobs per second in bulk, against bare Celery's no-op tasks on the same broker.

Both backlogs are there before the clock starts: Vestry's behind a paused lane, Celery's behind a
cancelled consumer. Vestry's rate counts sealed payload, sealed result, receipt and the job's row,
all committed with fsync on; Celery's counts tasks that keep nothing.
"""

from __future__ import annotations

import time
from statistics import median

from benchmarks.bare_celery import BareWorker, bare_worker
from benchmarks.options import Options
from benchmarks.report import Outcome, paired_ratio
from benchmarks.stand import NO_OP, Stand, drained, stand, until, worker_settled
from vestry import Embedding
from workers.settings import Settings
from workers.stack.processes import BULK_NICE
from workers.worker import SPARE_THREADS

LANE = "private.bulk.gpu"
AIM = 10.0
OWNERS = 4


def run(options: Options) -> Outcome:
    """Alternate rounds of both."""
    outcome = Outcome("No-op jobs in bulk")
    jobs, tasks = options.scaled(20_000), options.scaled(4_000)
    threads = Settings.model_fields["slots"].default + SPARE_THREADS
    ours: list[float] = []
    enqueued: list[float] = []
    theirs: list[float] = []
    quiet: list[float] = []
    with stand(NO_OP, ["dispatcher", "reconciler", "private-bulk-gpu"]) as place:
        log = place.up.home / "logs" / "bare.log"
        # One worker at a time: an idle one with events on still sends heartbeats.
        _vestry(place, options.scaled(2_000))
        for _ in range(options.rounds):
            enqueue_rate, rate = _vestry(place, jobs)
            enqueued.append(enqueue_rate)
            ours.append(rate)
            for events, rates in ((True, theirs), (False, quiet)):
                with bare_worker(
                    place.valkey, threads, log, events=events, nice=BULK_NICE
                ) as worker:
                    _celery(worker, options.scaled(500))
                    rates.append(_celery(worker, tasks))
        worker_settled(place)
    outcome.rounds = {
        "vestry jobs/s": ours,
        "vestry enqueued/s": enqueued,
        "celery tasks/s, events on": theirs,
        "celery tasks/s, events off": quiet,
    }
    outcome.add("Vestry", median(ours), "jobs/s", note=f"{jobs:,} private jobs, one worker process")
    outcome.add(
        "bare Celery", median(theirs), "tasks/s",
        note=f"{tasks:,} tasks, one worker process, {threads} threads, events on as Vestry has them",
    )  # fmt: skip
    outcome.add("ratio", paired_ratio(ours, theirs), "x", at_least=AIM)
    outcome.add("bare Celery, events off", median(quiet), "tasks/s")
    outcome.add("ratio to that", paired_ratio(ours, quiet), "x")
    outcome.add("enqueue_many", median(enqueued), "jobs/s", note="sealed, one transaction an owner")
    return outcome


def _vestry(place: Stand, count: int) -> tuple[float, float]:
    """Jobs enqueued per second, and jobs finished per second from the resuming of the lane."""
    place.vestry.pause_lane(LANE)
    begun = time.perf_counter()
    for number in range(OWNERS):
        place.vestry.enqueue_many(
            place.conn,
            (Embedding(texts=["x"]) for _ in range(count // OWNERS)),
            owner=f"owner-{number}",
            privacy="private",
        )
    enqueued = time.perf_counter() - begun
    since = place.now()
    place.vestry.resume_lane(LANE)
    drained(place, LANE, within=300)
    row = place.admin.execute(
        """SELECT count(*), extract(epoch FROM max(j.finished_at))::float8, count(r.job_id),
                  count(t.job_id)
           FROM vestry.jobs j LEFT JOIN vestry.private_results r ON r.job_id = j.id
           LEFT JOIN vestry.receipts t ON t.job_id = j.id
           WHERE extract(epoch FROM j.finished_at) >= %s AND j.state = 'succeeded'""",
        [since],
    ).fetchone()
    assert row is not None
    made = count // OWNERS * OWNERS
    if {row[0], row[2], row[3]} != {made}:
        raise RuntimeError(f"{made} jobs, but {row[0]} done, {row[2]} results, {row[3]} receipts")
    return made / enqueued, made / (row[1] - since)


def _celery(worker: BareWorker, count: int) -> float:
    """Tasks per second from the adding of the consumer until all are done."""
    worker.pause()
    before = worker.done("nothing")
    with worker.app.producer_pool.acquire(block=True) as producer:
        for number in range(count):
            worker.app.send_task("nothing", args=(number,), producer=producer)
    begun = time.perf_counter()
    worker.resume()
    until(lambda: worker.waiting() == 0, within=300, every=0.005)
    took = time.perf_counter() - begun
    # What the threads still hold is a dozen tasks; that all were run is checked off the clock.
    until(lambda: worker.done("nothing") - before == count, within=30)
    return count / took
