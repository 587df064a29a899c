"""Task events for Flower: published for jobs that ran without a hint of their own, batched for all.

A job without a hint was added to a hinted batch or fetched. A hinted job is reported by Celery: its
task (`celery_integration/tasks.py`) raises an exception for each end but success. Events of interactive
jobs are always published, those of bulk jobs up to a rate; above it they are dropped and counted.
Postgres, not Flower, is the record of jobs.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final
from uuid import UUID

from celery.worker.consumer import Consumer

from models.states import State
from workers.execution.finish import REFUSED, Finished

log = logging.getLogger(__name__)

BULK_PER_S: Final = 50.0
"""Bulk jobs published per second: more cannot be followed on a screen."""
BATCH_DELAY_S: Final = 0.1
"""Delay of an event, so that others share its message. A message costs about a millisecond of the
process's CPU time (measured: 1,061 messages/s; 23,000 events/s in one message), taken from jobs."""
EVENTS_PER_MESSAGE: Final = 200
IDLE_S: Final = 5.0
"""An unused connection returns to its pool after this long."""
BACKLOG: Final = 10_000
"""Most events waiting to be sent; more are dropped."""


class TaskEventPublisher:
    """Publishes events from its own thread, so that a slow broker delays no job.

    Args:
        app: the Celery app.
        hostname: the worker's node name, as in the events that Celery sends itself.

    Attributes:
        dropped: events that were not sent.
    """

    def __init__(self, app: Any, hostname: str) -> None:
        self._app = app
        self._hostname = hostname
        # Threads that run jobs write to it: a SimpleQueue costs them least.
        self._events: queue.SimpleQueue[tuple[str, dict[str, Any]]] = queue.SimpleQueue()
        self._allowance = BULK_PER_S
        self._allowance_at = time.monotonic()
        self._started: dict[UUID, float] = {}
        self.dropped = 0
        threading.Thread(target=self._run, name="task-events", daemon=True).start()

    def started(self, kind: str, lane: str, job_ids: Iterable[UUID], *, always: bool) -> None:
        """Publish that jobs of a kind and lane began. `always` exempts them from the rate limit."""
        for job_id in job_ids:
            if not (always or self._allowed()):
                self.dropped += 1
                continue
            self._started[job_id] = time.monotonic()
            name = {"uuid": str(job_id), "name": kind}
            received = {**name, "args": f"('{job_id}',)", "kwargs": "{}", "routing_key": lane}
            self._put("task-received", received)
            self._put("task-started", name)

    def finished(self, kind: str, job_ids: Iterable[UUID], done: Finished) -> None:
        """Publish how the jobs of `started` ended."""
        for job_id in job_ids:
            begun = self._started.pop(job_id, None)
            if begun is None:
                continue
            took = time.monotonic() - begun
            state = done.states.get(job_id)
            event: dict[str, Any] = {"uuid": str(job_id), "name": kind}
            failure = done.failures.get(job_id)
            if state == State.SUCCEEDED:
                self._put("task-succeeded", {**event, "result": "", "runtime": took})
            elif state == State.QUEUED and failure is not None:
                self._put("task-retried", {**event, "exception": failure.code, "traceback": ""})
            elif state == State.DEAD and failure is not None:
                self._put("task-failed", {**event, "exception": failure.code, "traceback": ""})
            elif state in (State.SUPERSEDED, REFUSED):
                self._put("task-revoked", {**event, "terminated": False, "expired": False})

    def _allowed(self) -> bool:
        now = time.monotonic()
        since = now - self._allowance_at
        self._allowance = min(BULK_PER_S, self._allowance + since * BULK_PER_S)
        self._allowance_at = now
        if self._allowance < 1:
            return False
        self._allowance -= 1
        return True

    def _put(self, kind: str, fields: dict[str, Any]) -> None:
        if self._events.qsize() >= BACKLOG:
            self.dropped += 1
            return
        # The time of the event, which is sent later.
        self._events.put((kind, {**fields, "timestamp": time.time()}))

    def _run(self) -> None:
        while True:
            event = self._events.get()
            # Wait first: its job is running in this process.
            time.sleep(BATCH_DELAY_S)
            try:
                self._send(event)
            except Exception as error:  # the thread must survive for the next event
                log.debug("task event dropped (%s)", type(error).__name__)
                self.dropped += 1
                time.sleep(1)

    def _send(self, event: tuple[str, dict[str, Any]]) -> None:
        """Send an event and those after it, until none comes for IDLE_S."""
        with (
            self._app.amqp.producer_pool.acquire(block=True) as producer,
            self._app.events.Dispatcher(
                producer.connection,
                self._hostname,
                producer.channel,
                buffer_while_offline=False,
                buffer_group=frozenset({"task"}),
                buffer_limit=EVENTS_PER_MESSAGE,
            ) as dispatcher,
            suppress(queue.Empty),
        ):
            while True:
                kind, fields = event
                dispatcher.send(kind, **fields)
                is_last = self._events.empty()
                if is_last:
                    dispatcher.flush()
                event = self._events.get(timeout=IDLE_S)
                if is_last:
                    time.sleep(BATCH_DELAY_S)


class BatchedEventConsumer(Consumer):  # type: ignore[misc] # Celery ships no types
    """Celery's consumer, sending task events together after BATCH_DELAY_S, with their own times."""

    _sending = False

    def on_send_event_buffered(self) -> None:
        """Schedule the sending of an event. Called from any thread, for every event."""
        if self.hub and not self._sending:
            self._sending = True
            # Only the event loop's thread may set its timers.
            self.hub.call_soon(self._send_later)

    def _send_later(self) -> None:
        self.hub.call_later(BATCH_DELAY_S, self._send)

    def _send(self, *_: Any) -> None:
        self._sending = False
        self._flush_events()
