"""Task events for jobs that ran without a message of their own: topped up, or found by a feeder.

Flower is the view, Postgres the record. Interactive jobs are always told of; bulk jobs up to a rate,
above which they are counted and left out.
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
"""Bulk jobs told of per second: as many as somebody watching could make use of."""
BATCH_DELAY_S: Final = 0.1
"""How long an event waits for others to share its message. A message costs about a millisecond of the
process's own time (measured, 1,061/s; in one message 23,000 events/s), which jobs would go without."""
EVENTS_PER_MESSAGE: Final = 200
IDLE_S: Final = 5.0
"""A connection that sends nothing is given back after this long."""
BACKLOG: Final = 10_000
"""Events waiting to be sent; more are shed."""


class TaskEventPublisher:
    """Sends events from a thread of its own, so that a slow broker slows no job.

    Args:
        app: the Celery app.
        hostname: the worker's node name, as in the events that Celery sends itself.
    """

    def __init__(self, app: Any, hostname: str) -> None:
        self._app = app
        self._hostname = hostname
        # Written to by threads that run jobs: this sort of queue costs them next to nothing.
        self._events: queue.SimpleQueue[tuple[str, dict[str, Any]]] = queue.SimpleQueue()
        self._allowance = BULK_PER_S
        self._at = time.monotonic()
        self._told: dict[UUID, float] = {}
        self.shed = 0
        threading.Thread(target=self._run, name="flower-feed", daemon=True).start()

    def started(self, kind: str, lane: str, job_ids: Iterable[UUID], *, sure: bool) -> None:
        """Jobs of a kind and lane began. `sure` tells of all of them, whatever the rate."""
        for job_id in job_ids:
            if not (sure or self._allowed()):
                self.shed += 1
                continue
            self._told[job_id] = time.monotonic()
            name = {"uuid": str(job_id), "name": kind}
            received = {**name, "args": f"('{job_id}',)", "kwargs": "{}", "routing_key": lane}
            self._put("task-received", received)
            self._put("task-started", name)

    def finished(self, kind: str, job_ids: Iterable[UUID], done: Finished) -> None:
        """The same jobs ended as `done` says."""
        for job_id in job_ids:
            begun = self._told.pop(job_id, None)
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
        self._allowance = min(BULK_PER_S, self._allowance + (now - self._at) * BULK_PER_S)
        self._at = now
        if self._allowance < 1:
            return False
        self._allowance -= 1
        return True

    def _put(self, kind: str, fields: dict[str, Any]) -> None:
        if self._events.qsize() >= BACKLOG:
            self.shed += 1
            return
        # The moment it happened, which is not the moment it is sent.
        self._events.put((kind, {**fields, "timestamp": time.time()}))

    def _run(self) -> None:
        while True:
            event = self._events.get()
            # Not now: the job it tells of is running, in this process.
            time.sleep(BATCH_DELAY_S)
            try:
                self._send(event)
            except Exception as error:  # whatever it is, the next event is to be told of
                log.debug("events not sent (%s)", type(error).__name__)
                self.shed += 1
                time.sleep(1)

    def _send(self, event: tuple[str, dict[str, Any]]) -> None:
        """Send an event and those after it, until none comes for a while."""
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
                waited = self._events.empty()
                if waited:
                    dispatcher.flush()
                event = self._events.get(timeout=IDLE_S)
                if waited:
                    time.sleep(BATCH_DELAY_S)


# Celery's consumer, with patience for Flower.


class BatchedEventConsumer(Consumer):  # type: ignore[misc] # Celery ships no types
    """Sends task events a moment later, together. They carry the time at which they happened."""

    _sending = False

    def on_send_event_buffered(self) -> None:
        """Called from any thread for every event; see to it that it will be sent."""
        if self.hub and not self._sending:
            self._sending = True
            # Only the loop's own thread may set its timers.
            self.hub.call_soon(self._send_later)

    def _send_later(self) -> None:
        self.hub.call_later(BATCH_DELAY_S, self._send)

    def _send(self, *_: Any) -> None:
        self._sending = False
        self._flush_events()
