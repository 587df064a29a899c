"""A worker process: runs batches when a hint comes and, without one, when it finds work itself."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import psycopg

from vestry.lanes import LANES, Latency
from workers.celery_integration.events import TaskEventPublisher
from workers.db import session
from workers.execution.batch_sizing import BatchSizer
from workers.execution.concurrency import SharedExclusiveLock, SlotPool, Wakeup
from workers.execution.executor import ClaimedBatch, Executor
from workers.execution.finish import Finished
from workers.execution.watchdog import StallWatchdog
from workers.settings import Settings

log = logging.getLogger(__name__)

ERROR_PAUSE_S = 1.0
"""How long a feeder rests that was refused work, by a database that is away for instance."""
PAUSE_RATIO = 3
"""How much longer than it held up the others a suspect then waits for its next chance."""


class JobFetcher:
    """Slots, hints, self-feeding and drain of one process.

    Args:
        executor: runs batches.
        settings: the process's settings.
        feed: tells Flower of jobs that ran without a message of their own.
        liveness: is told of every look for work.
    """

    def __init__(
        self,
        executor: Executor,
        settings: Settings,
        feed: TaskEventPublisher,
        liveness: StallWatchdog,
    ) -> None:
        self._executor = executor
        self._settings = settings
        self._events = feed
        self._watchdog = liveness
        self._slots = SlotPool(settings.slots)
        self._run_lock = SharedExclusiveLock()
        self._batch_sizer = BatchSizer(settings.batch_s)
        self._exclusive_timeout_s = 2 * settings.batch_s
        self._draining = threading.Event()
        self._wakeups = {lane: Wakeup(settings.poll_s) for lane in settings.lanes}
        self._kinds = tuple(executor.handlers)

    def start(self) -> None:
        """Begin to look for work: a thread for each slot, one for suspects."""
        for lane in self._settings.lanes:
            # As many as could ever run at once, so that batches of one kind leave some for another.
            for number in range(self._settings.slots * len(self._kinds)):
                threading.Thread(
                    target=self._fetch_lane,
                    args=(lane,),
                    name=f"feeder-{lane}-{number}",
                    daemon=True,
                ).start()
        threading.Thread(
            target=self._fetch_quarantined, name="feeder-quarantined", daemon=True
        ).start()

    def notify(self, lane: str) -> None:
        """There may be work in a lane of this process: have it looked for at once."""
        self._wakeups[lane].notify()

    def on_hint(self, lane: str, kind: str, job_id: UUID) -> Finished | None:
        """Run the batch that a hint is the first of; None if the job is not to be had.

        A message may be forged, or of a kind that a newer producer knows: what this process does not
        serve is none of its business.
        """
        if self._draining.is_set() or lane not in self._wakeups or kind not in self._kinds:
            return None
        self._slots.acquire(lane, kind)
        try:
            with self._run_lock.shared():
                return self._claim_and_run(lane, kind, hint=job_id)
        except psycopg.Error as error:
            # Not the job's fault, and not its end: a feeder or the reconciler takes it from here.
            log.warning("hinted job left to others (%s)", type(error).__name__)
            return None
        finally:
            self._release(lane, [kind])
            if LANES[lane].latency != Latency.INTERACTIVE:
                self._wakeups[lane].notify()

    def terminal_state(self, lane: str, job_id: UUID) -> tuple[str, str | None] | None:
        """State and error code of a job whose hint came too late; None for one that goes on.

        Such a job is finished, or was tried and waits for its next attempt. Looked up for
        interactive jobs alone: Flower tells of every one of those, and most late hints of a bulk
        lane are of jobs that a batch was topped up with.

        Raises:
            psycopg.Error: the database is away.
        """
        if lane not in LANES or LANES[lane].latency != Latency.INTERACTIVE:
            return None
        with session(self._executor.pool, self._settings.lease_s) as conn:
            row = conn.execute(
                """SELECT state, error_code FROM vestry.jobs
                   WHERE id = %s AND (finished_at IS NOT NULL
                                      OR (state = 'queued' AND start_tag IS NULL AND attempt > 0))""",
                [job_id],
                prepare=True,
            ).fetchone()
        return None if row is None else (str(row[0]), row[1])

    def drain(self) -> None:
        """Take nothing more, and hand every lease back at once with no attempt spent."""
        self._draining.set()
        self._watchdog.stop()
        for bell in self._wakeups.values():
            bell.close()
        for lease in self._executor.heartbeat.held_leases():
            try:
                self._executor.release(lease)
            except psycopg.Error as error:
                log.warning("lease not handed back (%s); it will expire", type(error).__name__)
        self._executor.heartbeat.release_unconfirmed()

    def _claim_and_run(
        self, lane: str, kind: str, *, hint: UUID | None = None, quarantined: bool = False
    ) -> Finished | None:
        opened = self._claim(lane, [kind], hint=hint, quarantined=quarantined)
        if opened is None:
            return None
        if opened.lease.more:
            self._wakeups[lane].notify()
        return self._run(opened, hint)

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
            opened = self._executor.claim(
                lane,
                kinds,
                hint=hint,
                limit=limit,
                budgets={kind: self._batch_sizer.budget(kind, latency) for kind in kinds},
                quarantined=quarantined,
            )
        finally:
            self._watchdog.record_poll()
        if opened is not None:
            self._watchdog.record_progress()
        if opened is not None and self._draining.is_set():
            self._executor.release(opened.lease)
            self._executor.heartbeat.remove(opened.lease)
            return None
        return opened

    def _run(self, opened: ClaimedBatch, hint: UUID | None = None) -> Finished:
        jobs = opened.lease.jobs
        kind = jobs[0].kind
        unannounced = [job.id for job in jobs if job.id != hint]
        sure = jobs[0].latency == Latency.INTERACTIVE
        self._events.started(kind, opened.lease.lane, unannounced, sure=sure)
        finished = Finished()
        begun = time.monotonic()
        try:
            finished = self._executor.run(opened)
        finally:
            self._watchdog.record_progress()
            self._events.finished(kind, unannounced, finished)
        worked = sum(job.cost for job in jobs if job.id in finished.worked)
        self._batch_sizer.observe(kind, worked, time.monotonic() - begun)
        return finished

    def _fetch_lane(self, lane: str) -> None:
        bell = self._wakeups[lane]
        while not self._draining.is_set():
            bell.wait()
            try:
                while not self._draining.is_set() and self._fetch_once(lane):
                    pass
            except Exception as error:  # a feeder must outlive whatever befalls a batch
                log.warning("no work to be had (%s)", type(error).__name__)
                self._draining.wait(ERROR_PAUSE_S)

    def _fetch_once(self, lane: str) -> bool:
        """Run a batch of a kind with a free slot, if there is any; whether to look again unasked."""
        held = self._slots.try_acquire(lane, self._kinds)
        if not held:
            return False
        try:
            with self._run_lock.shared():
                opened = self._claim(lane, held)
                if opened is None:
                    return False
                kind = opened.lease.jobs[0].kind
                self._release(lane, [other for other in held if other != kind])
                held = [kind]
                if opened.lease.more:
                    self._wakeups[lane].notify()
                self._run(opened)
        finally:
            self._release(lane, held)
        # What is enqueued in an interactive lane rings the bell.
        return LANES[lane].latency != Latency.INTERACTIVE

    def _release(self, lane: str, kinds: Sequence[str]) -> None:
        if self._slots.release(lane, kinds):
            self._wakeups[lane].notify()

    def _fetch_quarantined(self) -> None:
        while not self._draining.wait(self._settings.poll_s):
            try:
                for lane, kind in self._queues_with_quarantined():
                    self._run_quarantined(lane, kind)
            except Exception as error:  # a feeder must outlive whatever befalls a batch
                log.warning("suspects not looked for (%s)", type(error).__name__)

    def _run_quarantined(self, lane: str, kind: str) -> None:
        """Run a lane's suspects, one after the other, while the process does nothing else.

        Not all of them, if there are many: who waits in another lane waits no longer than a batch.
        Where the process was not empty in time it waits for longer the next time, or it would never
        run beside long generations that follow each other.
        """
        patience_s = self._exclusive_timeout_s
        until = time.monotonic() + self._settings.batch_s
        with self._run_lock.exclusive(patience_s) as empty:
            while empty and self._claim_and_run(lane, kind, quarantined=True) is not None:
                if time.monotonic() > until:
                    break
        if empty:
            self._exclusive_timeout_s = 2 * self._settings.batch_s
        else:
            # Something here takes long, or hangs until the watchdog ends it: let the others work.
            self._exclusive_timeout_s = min(2 * patience_s, self._settings.max_run_s)
            self._draining.wait(PAUSE_RATIO * patience_s)

    def _queues_with_quarantined(self) -> list[tuple[str, str]]:
        with session(self._executor.pool, self._settings.lease_s) as conn:
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
