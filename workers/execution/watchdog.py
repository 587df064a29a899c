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

from models.claim_query import runnable
from workers.db import bounded
from workers.execution.heartbeat import OVERRUN_EXIT, Heartbeat

Connection = psycopg.Connection[Any]
log = logging.getLogger(__name__)

LOOKS: Final = 4
"""How often it looks within the time that it is patient for."""
GIVE_UP: Final = 3
"""Times its patience, after which a thread that has not moved is taken for dead."""


class Liveness:
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
        heart: Heartbeat,
        patience_s: float,
        *,
        end: Callable[[int], object] = os._exit,
    ) -> None:
        self._connect = connect
        self._lanes = list(lanes)
        self._kinds = list(kinds)
        self._patience_s = patience_s
        self._end = end
        self._heart = heart
        self._stop = threading.Event()
        self._looked = self._moved = time.monotonic()
        self._seen: dict[UUID, float] = {}
        self._thread = threading.Thread(target=self._run, name="liveness", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._looked = self._moved = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        """The worker is to end: nobody is to blame for idleness any more."""
        self._stop.set()

    def looked(self) -> None:
        """The worker has just looked for work, whatever it found."""
        self._looked = time.monotonic()

    def moved(self) -> None:
        """The worker has just taken work, or done with it."""
        self._moved = time.monotonic()

    def _run(self) -> None:
        conn: Connection | None = None
        while not self._stop.wait(self._patience_s / LOOKS):
            self.check_threads()
            if self._heart.held():
                # A batch that never ends is the watchdog's in `heartbeat`.
                self._seen.clear()
                continue
            try:
                if conn is None or conn.closed:
                    conn = self._connect()
                with bounded(conn, self._patience_s):
                    self.check(conn)
            except psycopg.Error:
                # A database that is away has no work to show.
                self._seen.clear()
                if conn is not None:
                    conn.close()
                conn = None
        if conn is not None:
            conn.close()

    def check_threads(self) -> None:
        """End the process if a thread that it cannot do without has not moved for long."""
        limit = time.monotonic() - GIVE_UP * self._patience_s
        if self._heart.turned_at < limit:
            self._give_up("its heartbeat stands still")
        elif not self._heart.held() and max(self._looked, self._moved) < limit:
            self._give_up("nobody in it looks for work")

    def check(self, conn: Connection) -> None:
        """End the process if the same job has been runnable for too long while it did nothing."""
        now = time.monotonic()
        found = {row[0] for row in runnable(conn, self._lanes, self._kinds)}
        self._seen = {job: self._seen.get(job, now) for job in found}
        oldest = min(self._seen.values(), default=now)
        if not self._heart.held() and max(oldest, self._moved) <= now - self._patience_s:
            self._give_up("jobs lie there, and it takes none")

    def _give_up(self, why: str) -> None:
        log.critical("this worker is alive but idle (%s); it ends itself", why)
        self._end(OVERRUN_EXIT)
