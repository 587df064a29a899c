"""A hundred thousand jobs: the producer's memory, the broker's, another owner's ten, a paused lane.

The order of events: the lane is paused; one owner enqueues nearly all; they wait, and the broker is
looked at; the lane is resumed; when a fifth is done it is paused and resumed once more; when two
fifths are done the other owner enqueues ten, which are followed; then all the rest is done.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import psutil
import redis

from benchmarks.options import Options
from benchmarks.producer import TEXT, produce
from benchmarks.report import Outcome
from benchmarks.stand import NO_OP, Stand, drained, stand, until, worker_settled
from vestry import Embedding
from workers.settings import Settings, key_prefix

LANE = "private.bulk.gpu"
JOBS = 100_000
FEW = 10
PRODUCER_MB = 300.0
FEW_BATCHES = 4.0
"""What "a few batches" is taken to mean."""
KEYS_KB = 64.0
"""What a window of hints per lane may take: constant means that the backlog is not in it."""
GRACE_S = 2.0
"""After a pause, the batches under way may still finish."""
LOOK_S = 3.0


@dataclass(frozen=True, slots=True)
class Broker:
    """The broker's memory: what its keys hold in kB, and what the process holds in MB."""

    keys_kb: float
    process_mb: float
    hints: int


def run(options: Options) -> Outcome:
    """Go through the order of events once."""
    outcome = Outcome(f"A backlog of {options.scaled(JOBS):,} jobs")
    total = options.scaled(JOBS)
    with stand(NO_OP, ["dispatcher", "reconciler", "private-bulk-gpu"]) as place:
        place.vestry.pause_lane(LANE)
        before = _broker(place)
        _produce(outcome, place, total - FEW)
        _waiting(outcome, place, before)

        begun = place.now()
        place.vestry.resume_lane(LANE)
        most = [before]
        until(lambda: _flowing(place, most, total / 5), within=600)
        outcome.add(
            "broker's keys, hints flowing", max(b.keys_kb for b in most), "kB", at_most=KEYS_KB,
            note=f"most of {len(most)} looks; hints waiting: at most {max(b.hints for b in most)}",
        )  # fmt: skip
        _pause_and_resume(outcome, place)
        until(lambda: _done(place) >= total * 2 / 5, within=600)
        _ten_of_another(outcome, place)
        drained(place, LANE, within=900)
        took = place.now() - begun

        worker_settled(place)
        done = _done(place)
        if done != total:
            raise RuntimeError(f"{total} jobs, but {done} are done")
        outcome.add("all done after", took, "s", note="the pause included")
    return outcome


def _produce(outcome: Outcome, place: Stand, count: int) -> None:
    produced = produce(place.up.home, "heavy", count)
    outcome.add(
        "producer's peak memory", produced.peak_mb, "MB", at_most=PRODUCER_MB,
        note=f"enqueue_many of {count:,} jobs in one transaction",
    )  # fmt: skip
    outcome.add(
        "enqueued in", produced.seconds, "s", note=f"{count / produced.seconds:,.0f} jobs/s"
    )


def _waiting(outcome: Outcome, place: Stand, before: Broker) -> None:
    """The broker while all of it waits behind the pause."""
    time.sleep(LOOK_S)
    after = _broker(place)
    grown = after.keys_kb - before.keys_kb
    outcome.add(
        "broker's keys grew by", grown, "kB", at_most=KEYS_KB,
        note=f"{before.keys_kb:.0f} → {after.keys_kb:.0f} kB; hints waiting: {after.hints}",
    )  # fmt: skip
    outcome.add(
        "broker process", after.process_mb, "MB",
        note=f"resident; {before.process_mb:.1f} before",
    )  # fmt: skip


def _pause_and_resume(outcome: Outcome, place: Stand) -> None:
    place.vestry.pause_lane(LANE)
    time.sleep(GRACE_S)
    stopped = _done(place)
    time.sleep(LOOK_S)
    ran = _done(place) - stopped
    outcome.add("jobs done during a pause", ran, at_most=0, note=f"{GRACE_S:g} s after it began")
    begun = place.now()
    place.vestry.resume_lane(LANE)
    until(lambda: _done(place) > stopped, within=60, every=0.01)
    outcome.add("first jobs done after resuming", place.now() - begun, "s")


def _ten_of_another(outcome: Outcome, place: Stand) -> None:
    """How many batches began between the ten's enqueue and the last of their own claims."""
    jobs = place.vestry.enqueue_many(
        place.conn,
        (Embedding(texts=[TEXT]) for _ in range(FEW)),
        owner="light",
        privacy="private",
    )
    for job in jobs:
        place.vestry.wait_finished(job, timeout=300)
    row = place.admin.execute(
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
    batches, behind, seconds = row
    size = Settings.model_fields["batch_jobs"].default
    outcome.add(
        f"batches of others before another's {FEW}", batches, at_most=FEW_BATCHES,
        note=f"of up to {size} jobs; {behind:,} of the first owner's jobs still waited",
    )  # fmt: skip
    outcome.add("the ten done after", seconds, "s")


def _flowing(place: Stand, seen: list[Broker], enough: float) -> bool:
    """Look at the broker; whether enough is done."""
    seen.append(_broker(place))
    return _done(place) >= enough


def _done(place: Stand) -> int:
    return int(place.one("SELECT count(*) FROM vestry.jobs WHERE finished_at IS NOT NULL"))


def _broker(place: Stand) -> Broker:
    """What the private class's user may ask: its keys' own sizes, to the byte."""
    prefix = key_prefix("private")
    pid = place.up.pid("valkey")
    assert pid is not None
    with redis.Redis.from_url(place.valkey.url("private")) as broker:
        size = sum(
            int(broker.memory_usage(key, samples=0) or 0)
            for key in broker.scan_iter(match=f"{prefix}*", count=1000)
        )
        hints = int(broker.llen(prefix + LANE))
    return Broker(size / 1024, psutil.Process(pid).memory_info().rss / 1024**2, hints)
