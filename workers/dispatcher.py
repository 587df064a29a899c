"""`python -m workers.dispatcher`: keeps every lane's broker queue at its window of hints.

The backlog stays in Postgres. Any number of dispatchers may run; an advisory lock gives each lane to
one of them. A wiped broker costs nothing but a refill.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import psycopg
import redis
from celery import Celery
from kombu.exceptions import OperationalError

from models import dispatch_queries, transitions
from models.claim_query import LowWaterMark
from vestry.lanes import KINDS, LANES, Latency, Privacy
from workers import log_redaction
from workers.app import make_app
from workers.db import LOOP_DEADLINE_S, deadline, run_with_reconnect, stop_on_signals
from workers.route_publisher import RoutePublisher
from workers.settings import Settings, key_prefix

Connection = psycopg.Connection[Any]
log = logging.getLogger(__name__)

TICK_S: Final = 0.2
"""Every lane is looked at this often, and an interactive one soon after an enqueue."""
HEAD_START_S: Final = 0.02
"""How long an interactive job is left to the workers, which hear of it as the dispatcher does: an idle
one has claimed it within 2 to 5 ms. A hint at it would come too late for anybody, at the price of a
message and of two events in Flower. What is still in line after this gets one."""
REHINT_S: Final = 30.0
"""A job still queued this long after its hint is hinted at again: the hint may be lost."""
REHINT_EMPTY_S: Final = 1.0
"""The same where the queue is empty: then the hint is surely gone."""

BROKER_RETRY_S: Final = 1.0
"""How long the dispatcher leaves a broker alone that failed it."""


class Dispatcher:
    """Publishes hints for the lanes it holds.

    Args:
        settings: where database and broker are, and the window.
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
        self._rests_until: dict[str, float] = {}
        """Lanes left alone until then: the broker refused them, or is away."""
        self._heard: dict[str, float] = {}
        """Interactive lanes with a new job, and when the last one's head start is over."""

    def run(self, conn: Connection) -> None:
        """Dispatch until stopped or the connection breaks."""
        self._lanes.clear()
        self._routes.forget()
        with deadline(conn, LOOP_DEADLINE_S):
            conn.execute("LISTEN vestry_lane")
            # A hint's stamp lost in a crash costs one stale hint: no need to wait for the disk.
            conn.execute("SET synchronous_commit = off")
        next_tick = next_look = 0.0
        while not self._stop.is_set():
            due = min(next_tick, next_look) if self._heard else next_tick
            wait = max(0.0, due - time.monotonic())
            woken = {note.payload for note in conn.notifies(timeout=wait, stop_after=1)}
            if woken:
                # Take what else has already arrived, so that a burst is one round.
                woken |= {note.payload for note in conn.notifies(timeout=0)}
            now = time.monotonic()
            if not self._heard:
                next_look = now + HEAD_START_S
            interactive = {lane for lane in woken & self._lanes if _is_interactive(lane)}
            self._heard |= dict.fromkeys(interactive, now + HEAD_START_S)
            woken -= interactive
            if self._heard and now >= next_look:
                woken |= self._heard.keys()
                self._heard = {lane: end for lane, end in self._heard.items() if end > now}
                next_look = now + HEAD_START_S
            with deadline(conn, LOOP_DEADLINE_S):
                if now >= next_tick:
                    self._take_lanes(conn)
                    self._routes.refresh(conn)
                    transitions.schedule_due(conn)
                    woken = set(self._lanes)
                    next_tick = time.monotonic() + TICK_S
                self._fill(conn, woken & self._lanes)

    def _take_lanes(self, conn: Connection) -> None:
        """Hold the lanes that nobody else does. The locks end with the connection."""
        for lane in LANES.keys() - self._lanes:
            row = conn.execute(
                "SELECT pg_try_advisory_lock(hashtextextended('vestry.lane.' || %s, 0))", [lane]
            ).fetchone()
            if row is not None and row[0]:
                self._lanes.add(lane)

    def _fill(self, conn: Connection, lanes: AbstractSet[str]) -> None:
        lanes = frozenset(self._round_robin(lanes))
        if not lanes:
            return
        marks: dict[tuple[str, str], LowWaterMark] = {
            (lane, kind): self._marks.setdefault((lane, kind), LowWaterMark())
            for lane in lanes
            for kind in KINDS
        }
        found = dispatch_queries.lanes_with_ready_jobs(
            conn, marks, {lane: _head_start_s(lane) for lane in lanes}
        )
        for lane in self._round_robin({lane for lane, _ in found}):
            with self._with_broker_retry(lane):
                self._fill_lane(conn, lane, [kind for kind in KINDS if (lane, kind) in found])

    def _fill_lane(self, conn: Connection, lane: str, kinds: Sequence[str]) -> None:
        queued = int(self._broker.llen(key_prefix(LANES[lane].privacy) + lane))
        room = self._window - queued
        rehint_s = REHINT_EMPTY_S if queued == 0 else REHINT_S
        for kind in kinds:
            if room > 0:
                room -= self._hint(conn, lane, kind, room, rehint_s)

    def _hint(self, conn: Connection, lane: str, kind: str, limit: int, rehint_s: float) -> int:
        """Stamp jobs of a kind, then publish hints at them; how many.

        The stamp is committed first, so that a crash in between costs a rehint and no more.
        """
        chosen = dispatch_queries.mark_hinted(
            conn,
            lane,
            kind,
            limit=limit,
            rehint_s=rehint_s,
            mark=self._marks.setdefault((lane, kind), LowWaterMark()),
            age_s=_head_start_s(lane),
        )
        self._publish(LANES[lane].privacy, lane, kind, chosen)
        return len(chosen)

    def _round_robin(self, lanes: AbstractSet[str]) -> Iterator[str]:
        """Lanes that do not rest when their turn comes, the interactive ones first."""
        for lane in sorted(lanes, key=_interactive_first):
            if time.monotonic() >= self._rests_until.get(lane, 0.0):
                yield lane

    @contextmanager
    def _with_broker_retry(self, lane: str) -> Iterator[None]:
        """A broker that is away gives every lane a rest; one that refuses this lane, this one."""
        try:
            yield
        except (OperationalError, redis.RedisError, OSError) as error:
            away = _is_connection_error(error)
            log.warning(
                "broker %s (%s); workers look for work themselves",
                "away" if away else f"refuses {lane}",
                type(error.__cause__ or error).__name__,
            )
            rests = LANES.keys() if away else {lane}
            self._rests_until |= dict.fromkeys(rests, time.monotonic() + BROKER_RETRY_S)

    def _publish(self, privacy: str, lane: str, kind: str, chosen: list[UUID]) -> None:
        app = self._apps[privacy]
        with ExitStack() as stack:
            producer = stack.enter_context(app.producer_pool.acquire(block=True))
            for job_id in chosen:
                app.send_task(
                    kind,
                    args=(str(job_id),),
                    task_id=str(job_id),
                    queue=lane,
                    producer=producer,
                    retry=False,
                )


def _is_connection_error(error: Exception) -> bool:
    """Whether it concerns the connection, not one key. Kombu wraps errors of both sorts in its own."""
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
    """Dispatch until told to stop."""
    settings = Settings()
    log_redaction.configure(settings.log_level)
    log_redaction.own_process()
    stop = stop_on_signals()
    dispatcher = Dispatcher(settings, stop)
    if settings.ready_file is not None:
        Path(settings.ready_file).touch()
    run_with_reconnect(settings, "dispatcher", stop, dispatcher.run)


if __name__ == "__main__":
    main()
