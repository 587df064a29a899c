"""`python -m workers.dispatcher`: keeps a window of hints in every lane's broker queue.

The backlog stays in Postgres. Any number of dispatchers may run; an advisory lock gives each lane to
one of them. After the broker is wiped, the windows are filled again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import psycopg
import redis
from celery import Celery
from kombu.exceptions import OperationalError

from models import dispatch_queries, transitions
from models.claims import LowWaterMark
from vestry.lanes import KINDS, LANES, Latency, Privacy
from workers import failpoints, log_redaction
from workers.app import make_app
from workers.db import LOOP_DEADLINE_S, deadline, run_with_reconnect, stop_on_signals
from workers.failpoints import failpoint
from workers.route_publisher import RoutePublisher
from workers.settings import Settings, key_prefix, read_settings

Connection = psycopg.Connection[Any]
log = logging.getLogger(__name__)

TICK_S: Final = 0.2
"""Interval at which every lane is filled; an interactive lane is filled soon after an enqueue, too."""
HEAD_START_S: Final = 0.02
"""Delay of an interactive job's hint. Workers get the same notification as the dispatcher, and an idle
one claims the job within 2 to 5 ms: its hint would be stale, and cost a message and two events in
Flower. A job still queued after this delay gets a hint."""
REHINT_S: Final = 30.0
"""A job still queued this long after its hint gets another: the hint may be lost."""
REHINT_EMPTY_S: Final = 1.0
"""The same if the broker queue is empty: then the hint is certainly gone."""

BROKER_RETRY_S: Final = 1.0
"""Pause after a failure of the broker."""


class Dispatcher:
    """Publishes hints for the lanes whose advisory locks it holds.

    Args:
        settings: logins of database and broker, size of the window.
        stop: ends the loop.
    """

    def __init__(self, settings: Settings, stop: threading.Event) -> None:
        self._settings = settings
        self._stop = stop
        self._window = settings.hints_per_slot * settings.slots
        self._routes = RoutePublisher(settings)
        self._marks: dict[tuple[str, str], LowWaterMark] = {}
        self._lanes: set[str] = set()
        self._broker = redis.Redis.from_url(
            settings.broker, socket_timeout=5, socket_connect_timeout=2
        )
        self._apps: dict[str, Celery] = {
            privacy.value: make_app(settings.broker, privacy.value) for privacy in Privacy
        }
        self._paused_until: dict[str, float] = {}
        """By lane, when publishing resumes after a failure of the broker."""
        self._notified: dict[str, float] = {}
        """Interactive lanes with a new job, and when the head start of the newest ends."""

    def run(self, conn: Connection) -> None:
        """Dispatch until stopped or the connection breaks."""
        self._lanes.clear()
        self._routes.invalidate()
        with deadline(conn, LOOP_DEADLINE_S):
            conn.execute("LISTEN vestry_lane")
            # A hint stamp lost in a crash costs one stale hint: the commit need not wait for the disk.
            conn.execute("SET synchronous_commit = off")
        next_tick = next_fill = 0.0
        while not self._stop.is_set():
            due = min(next_tick, next_fill) if self._notified else next_tick
            timeout_s = max(0.0, due - time.monotonic())
            lanes = {note.payload for note in conn.notifies(timeout=timeout_s, stop_after=1)}
            if lanes:
                # Include all others that have arrived: a burst is one round.
                lanes |= {note.payload for note in conn.notifies(timeout=0)}
            now = time.monotonic()
            if not self._notified:
                next_fill = now + HEAD_START_S
            interactive = {lane for lane in lanes & self._lanes if _is_interactive(lane)}
            self._notified |= dict.fromkeys(interactive, now + HEAD_START_S)
            lanes -= interactive
            if self._notified and now >= next_fill:
                lanes |= self._notified.keys()
                self._notified = {lane: end for lane, end in self._notified.items() if end > now}
                next_fill = now + HEAD_START_S
            with deadline(conn, LOOP_DEADLINE_S):
                if now >= next_tick:
                    self._lock_lanes(conn)
                    self._routes.refresh(conn)
                    transitions.schedule_due(conn)
                    lanes = set(self._lanes)
                    next_tick = time.monotonic() + TICK_S
                self._fill(conn, lanes & self._lanes)

    def _lock_lanes(self, conn: Connection) -> None:
        """Lock the lanes that no other dispatcher holds. The locks end with the connection."""
        for lane in LANES.keys() - self._lanes:
            row = conn.execute(
                "SELECT pg_try_advisory_lock(hashtextextended('vestry.lane.' || %s, 0))", [lane]
            ).fetchone()
            if row is not None and row[0]:
                self._lanes.add(lane)

    def _fill(self, conn: Connection, lanes: AbstractSet[str]) -> None:
        lanes = frozenset(self._fillable(lanes))
        if not lanes:
            return
        marks: dict[tuple[str, str], LowWaterMark] = {
            (lane, kind): self._marks.setdefault((lane, kind), LowWaterMark())
            for lane in lanes
            for kind in KINDS
        }
        ready = dispatch_queries.lanes_with_ready_jobs(
            conn, marks, {lane: _head_start_s(lane) for lane in lanes}
        )
        for lane in self._fillable({lane for lane, _ in ready}):
            with self._pausing_on_error(lane):
                self._fill_lane(conn, lane, [kind for kind in KINDS if (lane, kind) in ready])

    def _fill_lane(self, conn: Connection, lane: str, kinds: Sequence[str]) -> None:
        queued = int(self._broker.llen(key_prefix(LANES[lane].privacy) + lane))
        free = self._window - queued
        rehint_s = REHINT_EMPTY_S if queued == 0 else REHINT_S
        for kind in kinds:
            if free > 0:
                free -= self._hint(conn, lane, kind, free, rehint_s)

    def _hint(self, conn: Connection, lane: str, kind: str, limit: int, rehint_s: float) -> int:
        """Stamp jobs of a kind as hinted, then publish their hints; returns how many.

        The stamp is committed first: a crash in between costs one rehint.
        """
        job_ids = dispatch_queries.mark_hinted(
            conn,
            lane,
            kind,
            limit=limit,
            rehint_s=rehint_s,
            mark=self._marks.setdefault((lane, kind), LowWaterMark()),
            age_s=_head_start_s(lane),
        )
        if job_ids:
            failpoint(failpoints.AFTER_HINT_STAMP, job_ids)
            self._publish(lane, kind, job_ids)
            failpoint(failpoints.AFTER_PUBLISH, job_ids)
        return len(job_ids)

    def _fillable(self, lanes: AbstractSet[str]) -> Iterator[str]:
        """The lanes that are not paused, interactive ones first."""
        for lane in sorted(lanes, key=_interactive_first):
            if time.monotonic() >= self._paused_until.get(lane, 0.0):
                yield lane

    @contextmanager
    def _pausing_on_error(self, lane: str) -> Iterator[None]:
        """Pause every lane if the broker is unavailable, only this one if the broker refuses it."""
        try:
            yield
        except (OperationalError, redis.RedisError, OSError) as error:
            unavailable = _is_connection_error(error)
            log.warning(
                "broker %s (%s); workers poll meanwhile",
                "unavailable" if unavailable else f"refuses {lane}",
                type(error.__cause__ or error).__name__,
            )
            paused = LANES.keys() if unavailable else {lane}
            self._paused_until |= dict.fromkeys(paused, time.monotonic() + BROKER_RETRY_S)

    def _publish(self, lane: str, kind: str, job_ids: Sequence[UUID]) -> None:
        app = self._apps[LANES[lane].privacy]
        with app.producer_pool.acquire(block=True) as producer:
            for job_id in job_ids:
                app.send_task(
                    kind,
                    args=(str(job_id),),
                    task_id=str(job_id),
                    queue=lane,
                    producer=producer,
                    retry=False,
                )


def _is_connection_error(error: Exception) -> bool:
    """Whether an error concerns the connection, not one key. Kombu wraps both in its own error."""
    cause: BaseException = error
    while isinstance(cause, OperationalError) and cause.__cause__ is not None:
        cause = cause.__cause__
    return isinstance(cause, (OperationalError, redis.ConnectionError, redis.TimeoutError, OSError))


def _is_interactive(lane: str) -> bool:
    return LANES[lane].latency == Latency.INTERACTIVE


def _head_start_s(lane: str) -> float:
    return HEAD_START_S if _is_interactive(lane) else 0.0


def _interactive_first(lane: str) -> tuple[bool, str]:
    return (not _is_interactive(lane), lane)


def main() -> None:
    """Dispatch until SIGTERM or SIGINT."""
    settings = read_settings("dispatcher", ("database_url", "broker_url"))
    log_redaction.configure(settings.log_level)
    log_redaction.own_process()
    stop = stop_on_signals()
    dispatcher = Dispatcher(settings, stop)
    if settings.ready_file is not None:
        Path(settings.ready_file).touch()
    run_with_reconnect(settings, "dispatcher", stop, dispatcher.run)


if __name__ == "__main__":
    main()
