"""A backlog of 100,000 jobs: memory of producer and broker, fairness to a second owner, pausing.

Steps: pause the lane; one owner enqueues all jobs but ten; measure the broker while they wait; resume
the lane; pause and resume it again when a fifth of the jobs is done; when two fifths are done, a
second owner enqueues ten jobs, whose wait is measured; wait until all jobs are done.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import psutil
import redis

from benchmarks.bench_stack import (
    NO_OP,
    BenchStack,
    bench_stack,
    check_all_succeeded,
    wait_until,
    wait_until_drained,
)
from benchmarks.options import Options
from benchmarks.producer import TEXT, run_producer
from benchmarks.report import BenchmarkResult
from vestry import Embedding
from workers.settings import Settings, key_prefix

LANE = "private.bulk.gpu"
JOBS = 100_000
SECOND_OWNER_JOBS = 10
PRODUCER_MB = 300.0
"""Aim for the producer's peak memory."""
FAIR_BATCHES = 4.0
"""Aim for the batches of the first owner that start before the second owner's jobs."""
KEYS_KB = 64.0
"""Aim for the memory of the broker's keys, which hold a limited number of hints and not the backlog."""
PAUSE_GRACE_S = 2.0
"""Seconds in which running batches may finish after a pause."""
OBSERVE_S = 3.0


@dataclass(frozen=True, slots=True)
class BrokerUsage:
    """Memory of the broker's keys and of its process, and the number of waiting hints."""

    keys_kb: float
    process_mb: float
    hints: int


def run(options: Options) -> BenchmarkResult:
    """Run the steps once."""
    result = BenchmarkResult(f"A backlog of {options.scaled(JOBS):,} jobs")
    total = options.scaled(JOBS)
    with bench_stack(NO_OP, ["dispatcher", "reconciler", "private-bulk-gpu"]) as stack:
        stack.vestry.pause_lane(LANE)
        before = _broker_usage(stack)
        _enqueue_backlog(result, stack, total - SECOND_OWNER_JOBS)
        _measure_waiting_backlog(result, stack, before)

        started = stack.database_time()
        stack.vestry.resume_lane(LANE)
        samples = [before]
        wait_until(lambda: _sample_until_done(stack, samples, total / 5), within=600)
        most_hints = max(sample.hints for sample in samples)
        result.add(
            "broker's keys, hints flowing", max(sample.keys_kb for sample in samples), "kB",
            at_most=KEYS_KB, note=f"maximum of {len(samples)} samples; most hints: {most_hints}",
        )  # fmt: skip
        _pause_and_resume(result, stack)
        wait_until(lambda: _done(stack) >= total * 2 / 5, within=600)
        _measure_second_owner(result, stack)
        wait_until_drained(stack, LANE, within=900)
        seconds = stack.database_time() - started

        check_all_succeeded(stack)
        done = _done(stack)
        if done != total:
            raise RuntimeError(f"{total} jobs, but {done} are done")
        result.add("all done after", seconds, "s", note="the pause included")
    return result


def _enqueue_backlog(result: BenchmarkResult, stack: BenchStack, count: int) -> None:
    producer = run_producer(stack.processes.home, "heavy", count)
    result.add(
        "producer's peak memory", producer.peak_mb, "MB", at_most=PRODUCER_MB,
        note=f"enqueue_many of {count:,} jobs in one transaction",
    )  # fmt: skip
    result.add("enqueued in", producer.seconds, "s", note=f"{count / producer.seconds:,.0f} jobs/s")


def _measure_waiting_backlog(
    result: BenchmarkResult, stack: BenchStack, before: BrokerUsage
) -> None:
    """Memory of the broker while all jobs wait in the paused lane."""
    time.sleep(OBSERVE_S)
    after = _broker_usage(stack)
    growth = after.keys_kb - before.keys_kb
    result.add(
        "broker's keys grew by", growth, "kB", at_most=KEYS_KB,
        note=f"{before.keys_kb:.0f} → {after.keys_kb:.0f} kB; hints waiting: {after.hints}",
    )  # fmt: skip
    result.add(
        "broker process", after.process_mb, "MB",
        note=f"resident; {before.process_mb:.1f} before",
    )  # fmt: skip


def _pause_and_resume(result: BenchmarkResult, stack: BenchStack) -> None:
    stack.vestry.pause_lane(LANE)
    time.sleep(PAUSE_GRACE_S)
    done_before = _done(stack)
    time.sleep(OBSERVE_S)
    done_paused = _done(stack) - done_before
    note = f"from {PAUSE_GRACE_S:g} s after its start"
    result.add("jobs done during a pause", done_paused, at_most=0, note=note)
    started = stack.database_time()
    stack.vestry.resume_lane(LANE)
    wait_until(lambda: _done(stack) > done_before, within=60, every=0.01)
    result.add("first jobs done after resuming", stack.database_time() - started, "s")


def _measure_second_owner(result: BenchmarkResult, stack: BenchStack) -> None:
    """Number of other batches that started between the enqueue and the last claim of its jobs."""
    jobs = stack.vestry.enqueue_many(
        stack.conn,
        (Embedding(texts=[TEXT]) for _ in range(SECOND_OWNER_JOBS)),
        owner="light",
        privacy="private",
    )
    for job in jobs:
        stack.vestry.wait_finished(job, timeout=300)
    row = stack.admin.execute(
        """WITH ten AS (SELECT j.*, r.lease_id AS batch FROM vestry.jobs j
                        JOIN vestry.receipts r ON r.job_id = j.id WHERE j.owner = 'light'),
                span AS (SELECT min(created_at) AS first, max(started_at) AS last,
                                max(finished_at) AS finished FROM ten)
           SELECT (SELECT count(DISTINCT r.lease_id) FROM vestry.receipts r, span
                   WHERE r.started_at BETWEEN span.first AND span.last
                     AND r.lease_id NOT IN (SELECT batch FROM ten)),
                  (SELECT count(*) FROM vestry.jobs j
                   WHERE j.owner = 'heavy' AND j.state = 'queued'),
                  extract(epoch FROM span.finished - span.first)::float8
           FROM span"""
    ).fetchone()
    assert row is not None
    batches, queued, seconds = row
    size = Settings.model_fields["batch_jobs"].default
    result.add(
        f"first owner's batches before the second owner's {SECOND_OWNER_JOBS} jobs", batches,
        at_most=FAIR_BATCHES,
        note=f"of up to {size} jobs; {queued:,} of the first owner's jobs were still queued",
    )  # fmt: skip
    result.add(f"second owner's {SECOND_OWNER_JOBS} jobs done after", seconds, "s")


def _sample_until_done(stack: BenchStack, samples: list[BrokerUsage], count: float) -> bool:
    """Add a sample of the broker's memory; returns whether `count` jobs are done."""
    samples.append(_broker_usage(stack))
    return _done(stack) >= count


def _done(stack: BenchStack) -> int:
    return int(stack.scalar("SELECT count(*) FROM vestry.jobs WHERE finished_at IS NOT NULL"))


def _broker_usage(stack: BenchStack) -> BrokerUsage:
    """Memory by the private class's login, which may read the sizes of its own keys."""
    prefix = key_prefix("private")
    pid = stack.processes.pid("valkey")
    assert pid is not None
    with redis.Redis.from_url(stack.valkey.url("private")) as broker:
        size = sum(
            int(broker.memory_usage(key, samples=0) or 0)
            for key in broker.scan_iter(match=f"{prefix}*", count=1000)
        )
        hints = int(broker.llen(prefix + LANE))
    return BrokerUsage(size / 1024, psutil.Process(pid).memory_info().rss / 1024**2, hints)
