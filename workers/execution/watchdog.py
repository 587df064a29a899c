"""Watchdog: ends a worker that is idle while jobs are runnable; its supervisor restarts it.

It detects dead and deadlocked threads only by the times of their last poll and progress.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final
from uuid import UUID

import psycopg

from models.claims import claimable_heads
from workers.db import deadline
from workers.execution.heartbeat import RESTART_EXIT_CODE, Heartbeat

Connection = psycopg.Connection[Any]
log = logging.getLogger(__name__)

CHECKS_PER_TIMEOUT: Final = 4
"""Checks within one `stall_timeout_s`."""
HARD_TIMEOUT_FACTOR: Final = 3
"""Multiple of `stall_timeout_s` after which a thread without a round or poll counts as dead."""


class StallWatchdog:
    """Watches one worker process.

    Args:
        connect: opens an autocommit connection.
        lanes: the worker's lanes.
        kinds: that it has handlers for.
        heartbeat: holds the worker's leases; its rounds are watched too.
        stall_timeout_s: how long a runnable job may wait while the worker is idle.
        end: ends the process.
    """

    def __init__(
        self,
        connect: Callable[[], Connection],
        lanes: Sequence[str],
        kinds: Sequence[str],
        heartbeat: Heartbeat,
        stall_timeout_s: float,
        *,
        end: Callable[[int], object] = os._exit,
    ) -> None:
        self._connect = connect
        self._lanes = list(lanes)
        self._kinds = list(kinds)
        self._stall_timeout_s = stall_timeout_s
        self._end = end
        self._heartbeat = heartbeat
        self._stop = threading.Event()
        self._polled_at = self._progressed_at = time.monotonic()
        self._runnable_since: dict[UUID, float] = {}
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._polled_at = self._progressed_at = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        """End the thread: a draining worker is idle by design."""
        self._stop.set()

    def record_poll(self) -> None:
        """Record that the worker has just polled for work."""
        self._polled_at = time.monotonic()

    def record_progress(self) -> None:
        """Record that the worker has just begun or ended a batch."""
        self._progressed_at = time.monotonic()

    def _run(self) -> None:
        conn: Connection | None = None
        while not self._stop.wait(self._stall_timeout_s / CHECKS_PER_TIMEOUT):
            self.check_threads()
            if self._heartbeat.held_leases():
                # The heartbeat ends the process if a batch does not end.
                self._runnable_since.clear()
                continue
            try:
                if conn is None or conn.closed:
                    conn = self._connect()
                with deadline(conn, self._stall_timeout_s):
                    self.check(conn)
            except psycopg.Error:
                # Without the database no runnable job is known.
                self._runnable_since.clear()
                if conn is not None:
                    conn.close()
                conn = None
        if conn is not None:
            conn.close()

    def check_threads(self) -> None:
        """End the process if its heartbeat or its fetch threads have stopped."""
        limit = time.monotonic() - HARD_TIMEOUT_FACTOR * self._stall_timeout_s
        if self._heartbeat.last_round_at < limit:
            self._end_process("the heartbeat has stopped")
        elif (
            not self._heartbeat.held_leases() and max(self._polled_at, self._progressed_at) < limit
        ):
            self._end_process("no thread polls")

    def check(self, conn: Connection) -> None:
        """End the process if one job has been runnable for too long while the worker was idle."""
        now = time.monotonic()
        jobs = {row[0] for row in claimable_heads(conn, self._lanes, self._kinds)}
        self._runnable_since = {job: self._runnable_since.get(job, now) for job in jobs}
        oldest = min(self._runnable_since.values(), default=now)
        if (
            not self._heartbeat.held_leases()
            and max(oldest, self._progressed_at) <= now - self._stall_timeout_s
        ):
            self._end_process("it claims no runnable job")

    def _end_process(self, reason: str) -> None:
        log.critical("worker stalled (%s); ending the process", reason)
        self._end(RESTART_EXIT_CODE)
