"""Fetching of work: a worker process's fetch threads, hints, batch sizes and drain.

A worker fetches when a hint arrives, when Postgres notifies it, and by polling. Fetch threads of a lane
claim batches of any kind with a free slot; one more thread runs quarantined jobs, each exclusively.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any, Final, Protocol
from uuid import UUID

import psycopg

from vestry.lanes import LANES, Latency
from workers.db import session
from workers.execution.concurrency import SharedExclusiveLock, SlotPool, Wakeup
from workers.execution.executor import ClaimedBatch, Executor
from workers.execution.finish import Finished
from workers.execution.watchdog import StallWatchdog
from workers.settings import Settings

log = logging.getLogger(__name__)

ERROR_BACKOFF_S: Final = 1.0
"""Back-off of a fetch thread after a failure, such as a lost database connection."""
EXCLUSIVE_BACKOFF_RATIO: Final = 3
"""Back-off after an exclusive run that timed out, as a multiple of its timeout."""
SMOOTHING: Final = 0.3
"""Weight of the newest batch in the moving average of cost units per second."""
FIRST_BUDGET: Final = 16
"""Cost units of the first batch, before any measurement."""
GROWTH: Final = 2.0
"""Most by which one batch may multiply the average rate, before smoothing."""
LARGEST_BUDGET: Final = 4096
"""Most cost units of a batch: its results are held in memory until they are stored."""
SINGLE_JOB_KINDS: Final = frozenset({"generation"})
"""Kinds whose batches hold one job. Each takes long, a batch gains nothing, and jobs of a batch that
have not begun could not run in another slot."""
INTERACTIVE_BATCH_S: Final = 0.05
"""Target duration of an interactive batch: it delays the jobs that arrive meanwhile."""


class JobEvents(Protocol):
    """Receives the start and end of jobs that ran without a hint of their own."""

    def started(self, kind: str, lane: str, job_ids: Iterable[UUID], *, always: bool) -> None:
        """Report that jobs of a kind and lane began; `always` exempts them from the rate limit."""
        ...

    def finished(self, kind: str, job_ids: Iterable[UUID], done: Finished) -> None:
        """Report how the jobs of `started` ended."""
        ...


class JobFetcher:
    """Slots, fetch threads and drain of one process.

    Args:
        executor: runs batches.
        settings: the process's settings.
        events: receives the jobs that ran without a hint of their own.
        watchdog: is notified of every poll and batch.
    """

    def __init__(
        self,
        executor: Executor,
        settings: Settings,
        events: JobEvents,
        watchdog: StallWatchdog,
    ) -> None:
        self.executor = executor
        self._settings = settings
        self._events = events
        self._watchdog = watchdog
        self._slots = SlotPool(settings.slots)
        self._run_lock = SharedExclusiveLock()
        self._batch_sizer = BatchSizer(settings.batch_s)
        self._exclusive_timeout_s = 2 * settings.batch_s
        self._draining = threading.Event()
        self._wakeups = {lane: Wakeup(settings.poll_s) for lane in settings.lanes}
        self._kinds = tuple(executor.handlers)

    def start(self) -> None:
        """Start the fetch threads."""
        for lane in self._settings.lanes:
            # One for each slot of each kind: batches of one kind leave threads for the others.
            for number in range(self._settings.slots * len(self._kinds)):
                threading.Thread(
                    target=self._fetch_lane,
                    args=(lane,),
                    name=f"fetcher-{lane}-{number}",
                    daemon=True,
                ).start()
        threading.Thread(
            target=self._fetch_quarantined, name="fetcher-quarantined", daemon=True
        ).start()

    def notify(self, lane: str) -> None:
        """Wake a fetch thread: there may be work in this lane of the process."""
        self._wakeups[lane].notify()

    def on_hint(self, lane: str, kind: str, job_id: UUID) -> Finished | None:
        """Run the batch that begins with a hinted job; None if the job cannot be claimed.

        A hint that is forged, or names a kind that only a newer worker serves, is ignored.
        """
        if self._draining.is_set() or lane not in self._wakeups or kind not in self._kinds:
            return None
        self._slots.acquire(lane, kind)
        try:
            with self._run_lock.shared():
                return self._claim_and_run(lane, kind, hint=job_id)
        except psycopg.Error as error:
            # Not the jobs' fault: a fetch thread claims them, or the reconciler rescues them.
            log.warning(
                "hinted batch failed (%s); its jobs stay queued or are rescued",
                type(error).__name__,
            )
            return None
        finally:
            self._release(lane, [kind])
            if LANES[lane].latency != Latency.INTERACTIVE:
                self._wakeups[lane].notify()

    def terminal_state(self, lane: str, job_id: UUID) -> tuple[str, str | None] | None:
        """State and error code of a job that ended, or waits for a retry, before its hint arrived.

        Looked up only for interactive jobs: Flower shows each of those, and most late hints of a bulk
        lane are of jobs that an earlier batch included.

        Returns:
            None for any other job.

        Raises:
            psycopg.Error: the database is unavailable.
        """
        if lane not in LANES or LANES[lane].latency != Latency.INTERACTIVE:
            return None
        with session(self.executor.pool, self._settings.lease_s) as conn:
            row = conn.execute(
                """SELECT state, error_code FROM vestry.jobs
                   WHERE id = %s AND (finished_at IS NOT NULL
                                      OR (state = 'queued' AND start_tag IS NULL AND attempt > 0))""",
                [job_id],
                prepare=True,
            ).fetchone()
        return None if row is None else (str(row[0]), row[1])

    def drain(self) -> None:
        """Claim nothing more, and release every lease with no attempt spent."""
        self._draining.set()
        self._watchdog.stop()
        for wakeup in self._wakeups.values():
            wakeup.close()
        for lease in self.executor.heartbeat.held_leases():
            try:
                self.executor.release(lease)
            except psycopg.Error as error:
                log.warning("lease not released (%s); it will expire", type(error).__name__)
        self.executor.heartbeat.release_unconfirmed()

    def _fetch_lane(self, lane: str) -> None:
        wakeup = self._wakeups[lane]
        while not self._draining.is_set():
            wakeup.wait()
            try:
                while not self._draining.is_set() and self._fetch_once(lane):
                    pass
            except Exception as error:  # a fetch thread must survive any failure of a batch
                log.warning(
                    "fetch from %s failed (%s); polling goes on", lane, type(error).__name__
                )
                self._draining.wait(ERROR_BACKOFF_S)

    def _fetch_once(self, lane: str) -> bool:
        """Run a batch of a kind with a free slot; whether to poll again without a wake-up."""
        held = self._slots.try_acquire(lane, self._kinds)
        if not held:
            return False
        try:
            with self._run_lock.shared():
                batch = self._claim(lane, held)
                if batch is None:
                    return False
                kind = batch.lease.jobs[0].kind
                self._release(lane, [other for other in held if other != kind])
                held = [kind]
                if batch.lease.more:
                    self._wakeups[lane].notify()
                self._run(batch)
        finally:
            self._release(lane, held)
        # An enqueue in an interactive lane notifies the worker.
        return LANES[lane].latency != Latency.INTERACTIVE

    def _fetch_quarantined(self) -> None:
        while not self._draining.wait(self._settings.poll_s):
            try:
                for lane, kind in self._queues_with_quarantined():
                    self._run_quarantined(lane, kind)
            except Exception as error:  # a fetch thread must survive any failure of a batch
                reason = type(error).__name__
                log.warning("fetch of quarantined jobs failed (%s); polling goes on", reason)

    def _run_quarantined(self, lane: str, kind: str) -> None:
        """Run a queue's quarantined jobs, one after the other, each exclusively.

        At most for `batch_s`: other lanes wait meanwhile. If the process's batches did not end in time,
        the timeout doubles; else quarantined jobs would never run beside a series of long generations.
        """
        timeout_s = self._exclusive_timeout_s
        until = time.monotonic() + self._settings.batch_s
        with self._run_lock.exclusive(timeout_s) as acquired:
            while acquired and self._claim_and_run(lane, kind, quarantined=True) is not None:
                if time.monotonic() > until:
                    break
        if acquired:
            self._exclusive_timeout_s = 2 * self._settings.batch_s
        else:
            # A batch takes long, or hangs until the heartbeat ends the process: let others begin.
            self._exclusive_timeout_s = min(2 * timeout_s, self._settings.max_run_s)
            self._draining.wait(EXCLUSIVE_BACKOFF_RATIO * timeout_s)

    def _queues_with_quarantined(self) -> list[tuple[str, str]]:
        """The (lane, kind) queues that hold a runnable quarantined job."""
        with session(self.executor.pool, self._settings.lease_s) as conn:
            rows: list[Any] = conn.execute(
                """SELECT lane, kind
                   FROM unnest(%s::text[]) lane, unnest(%s::text[]) kind
                   WHERE EXISTS (SELECT FROM vestry.jobs j
                                 WHERE j.lane = lane.lane AND j.kind = kind.kind
                                   AND j.state = 'queued' AND j.start_tag IS NOT NULL AND j.quarantined
                                   AND (j.deadline IS NULL OR j.deadline > vestry.clock()))
                     AND EXISTS (SELECT FROM vestry.lanes l
                                 WHERE l.lane = lane.lane AND l.paused_at IS NULL)""",
                [list(self._settings.lanes), list(self._kinds)],
                prepare=True,
            ).fetchall()
        return [(row[0], row[1]) for row in rows]

    def _claim_and_run(
        self, lane: str, kind: str, *, hint: UUID | None = None, quarantined: bool = False
    ) -> Finished | None:
        batch = self._claim(lane, [kind], hint=hint, quarantined=quarantined)
        if batch is None:
            return None
        if batch.lease.more:
            self._wakeups[lane].notify()
        return self._run(batch, hint)

    def _claim(
        self,
        lane: str,
        kinds: Sequence[str],
        *,
        hint: UUID | None = None,
        quarantined: bool = False,
    ) -> ClaimedBatch | None:
        latency = LANES[lane].latency
        limit = (
            self._settings.interactive_batch_jobs
            if latency == Latency.INTERACTIVE
            else self._settings.batch_jobs
        )
        try:
            batch = self.executor.claim(
                lane,
                kinds,
                hint=hint,
                limit=limit,
                budgets={kind: self._batch_sizer.budget(kind, latency) for kind in kinds},
                quarantined=quarantined,
            )
        finally:
            self._watchdog.record_poll()
        if batch is not None:
            self._watchdog.record_progress()
        if batch is not None and self._draining.is_set():
            self.executor.release(batch.lease)
            self.executor.heartbeat.remove(batch.lease)
            return None
        return batch

    def _run(self, batch: ClaimedBatch, hint: UUID | None = None) -> Finished:
        jobs = batch.lease.jobs
        kind = jobs[0].kind
        unhinted = [job.id for job in jobs if job.id != hint]
        always = jobs[0].latency == Latency.INTERACTIVE
        self._events.started(kind, batch.lease.lane, unhinted, always=always)
        finished = Finished()
        begun = time.monotonic()
        try:
            finished = self.executor.run(batch)
        finally:
            self._watchdog.record_progress()
            self._events.finished(kind, unhinted, finished)
        worked = sum(job.cost for job in jobs if job.id in finished.worked)
        self._batch_sizer.observe(kind, worked, time.monotonic() - begun)
        return finished

    def _release(self, lane: str, kinds: Sequence[str]) -> None:
        if self._slots.release(lane, kinds):
            self._wakeups[lane].notify()


class BatchSizer:
    """Cost budget of the next batch of a kind, from the measured rate of its earlier batches.

    Args:
        bulk_s: target duration of a bulk batch.
    """

    def __init__(self, bulk_s: float) -> None:
        self._bulk_s = bulk_s
        self._rates: dict[str, float] = {}
        self._lock = threading.Lock()

    def budget(self, kind: str, latency: str) -> int:
        """Most cost units for the next batch of a kind."""
        if kind in SINGLE_JOB_KINDS:
            return 1
        rate = self._rates.get(kind)
        if rate is None:
            return 1 if latency == "interactive" else FIRST_BUDGET
        seconds = INTERACTIVE_BATCH_S if latency == "interactive" else self._bulk_s
        return max(1, min(LARGEST_BUDGET, int(rate * seconds)))

    def observe(self, kind: str, cost: int, took_s: float) -> None:
        """Record a batch that took `took_s` seconds.

        `cost` counts only the jobs for which a model ran: unchanged and refused ones would distort
        the rate.
        """
        if cost <= 0:
            return
        rate = cost / max(took_s, 1e-3)
        with self._lock:
            before = self._rates.get(kind)
            if before is not None:
                rate = before + SMOOTHING * (min(rate, GROWTH * before) - before)
            self._rates[kind] = rate
