"""Ends a worker that is alive but idle beside work; its supervisor starts it again.

Threads can die or wait for each other in ways that nobody foresaw. This one knows nothing of the others
but when they last did something.
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
from workers.execution.heartbeat import OVERRUN_EXIT_CODE, Heartbeat

Connection = psycopg.Connection[Any]
log = logging.getLogger(__name__)

CHECKS_PER_TIMEOUT: Final = 4
"""How often it looks within the time that it is patient for."""
HARD_TIMEOUT_FACTOR: Final = 3
"""Times its patience, after which a thread that has not moved is taken for dead."""


class StallWatchdog:
    """Watches one worker.

    Args:
        connect: makes a connection that commits by itself.
        lanes: those the worker serves.
        kinds: those it has handlers for.
        heart: its heartbeat, which knows whether it holds anything.
        patience_s: how long work may lie there untouched by an idle worker.
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
        self._thread = threading.Thread(target=self._run, name="liveness", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._polled_at = self._progressed_at = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        """The worker is to end: nobody is to blame for idleness any more."""
        self._stop.set()

    def record_poll(self) -> None:
        """The worker has just looked for work, whatever it found."""
        self._polled_at = time.monotonic()

    def record_progress(self) -> None:
        """The worker has just taken work, or done with it."""
        self._progressed_at = time.monotonic()

    def _run(self) -> None:
        conn: Connection | None = None
        while not self._stop.wait(self._stall_timeout_s / CHECKS_PER_TIMEOUT):
            self.check_threads()
            if self._heartbeat.held_leases():
                # A batch that never ends is the watchdog's in `heartbeat`.
                self._runnable_since.clear()
                continue
            try:
                if conn is None or conn.closed:
                    conn = self._connect()
                with deadline(conn, self._stall_timeout_s):
                    self.check(conn)
            except psycopg.Error:
                # A database that is away has no work to show.
                self._runnable_since.clear()
                if conn is not None:
                    conn.close()
                conn = None
        if conn is not None:
            conn.close()

    def check_threads(self) -> None:
        """End the process if a thread that it cannot do without has not moved for long."""
        limit = time.monotonic() - HARD_TIMEOUT_FACTOR * self._stall_timeout_s
        if self._heartbeat.last_round_at < limit:
            self._end_process("its heartbeat stands still")
        elif (
            not self._heartbeat.held_leases() and max(self._polled_at, self._progressed_at) < limit
        ):
            self._end_process("nobody in it looks for work")

    def check(self, conn: Connection) -> None:
        """End the process if the same job has been runnable for too long while it did nothing."""
        now = time.monotonic()
        found = {row[0] for row in claimable_heads(conn, self._lanes, self._kinds)}
        self._runnable_since = {job: self._runnable_since.get(job, now) for job in found}
        oldest = min(self._runnable_since.values(), default=now)
        if (
            not self._heartbeat.held_leases()
            and max(oldest, self._progressed_at) <= now - self._stall_timeout_s
        ):
            self._end_process("jobs lie there, and it takes none")

    def _end_process(self, why: str) -> None:
        log.critical("this worker is alive but idle (%s); it ends itself", why)
        self._end(OVERRUN_EXIT_CODE)
