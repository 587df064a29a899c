"""Heartbeat: extends the leases of a process, on a thread and a connection of its own."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

import psycopg

from models import claims, transitions
from models.claims import Lease
from workers import failpoints
from workers.db import deadline
from workers.execution.lost_claims import UnconfirmedClaims
from workers.failpoints import failpoint

log = logging.getLogger(__name__)


OVERRUN_GRACE_S = 5.0
"""Time that a batch may run beyond `max_run_s` before the process is ended."""
RESTART_EXIT_CODE = 75
"""Exit code of a process that ended itself (EX_TEMPFAIL of sysexits.h); its supervisor restarts it."""


class Heartbeat:
    """Extends the process's leases, and records which jobs it has lost.

    Each round also releases unconfirmed claims, runs the periodic tasks, and ends the process if a
    batch has run past `max_run_s`: a thread cannot be stopped from outside. The other batches are
    released first, with no attempt spent.

    It has its own connection, since all of the pool's may be waiting in finishing transactions.

    Args:
        connect: opens an autocommit connection.
        lease_s: duration of a lease.
        every_s: interval of rounds.
        max_run_s: longest run of a batch.
        periodic_tasks: quick functions that raise nothing, run each round.
        stop: ends the thread.
    """

    def __init__(
        self,
        connect: Callable[[], psycopg.Connection[Any]],
        lease_s: float,
        every_s: float,
        max_run_s: float,
        periodic_tasks: Sequence[Callable[[], None]] = (),
        *,
        stop: threading.Event | None = None,
    ) -> None:
        self._connect = connect
        self._lease_s = lease_s
        self._every_s = every_s
        self._max_run_s = max_run_s
        self._periodic_tasks = periodic_tasks
        self._since: dict[UUID, float] = {}
        self._lock = threading.Lock()
        self._leases: dict[UUID, Lease] = {}
        self._lost: set[UUID] = set()
        self._stop = stop or threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self.unconfirmed = UnconfirmedClaims(lease_s)
        self.last_round_at = time.monotonic()
        """Monotonic time at which the thread last completed a round, successful or not."""

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; leases are not released."""
        self._stop.set()

    def add(self, lease: Lease) -> None:
        """Extend a lease from now on."""
        with self._lock:
            self._leases[lease.id] = lease
            self._since[lease.id] = time.monotonic()

    def remove(self, lease: Lease) -> None:
        """Stop extending a lease: its batch has ended."""
        with self._lock:
            self._leases.pop(lease.id, None)
            self._since.pop(lease.id, None)
            self._lost.difference_update(job.id for job in lease.jobs)

    def release_unconfirmed(self) -> None:
        """Release unconfirmed claims now: the process may end before the next round."""
        if not self.unconfirmed.pending():
            return
        try:
            with self._connect() as conn, deadline(conn, self._lease_s / 3):
                self.unconfirmed.release(conn)
        except psycopg.Error as error:
            log.warning(
                "unconfirmed claims not released (%s); they will expire", type(error).__name__
            )

    def held_leases(self) -> list[Lease]:
        """The leases of batches that have not ended."""
        with self._lock:
            return list(self._leases.values())

    def mark_lost(self, lease: Lease) -> None:
        """Mark a lease's jobs as lost: the process releases them."""
        with self._lock:
            self._lost.update(job.id for job in lease.jobs)

    def is_lost(self, job_id: UUID) -> bool:
        """Whether the process is known to have lost a job's lease."""
        return job_id in self._lost

    def extend_leases(self, conn: psycopg.Connection[Any]) -> None:
        """Extend all leases once, and mark the jobs that are no longer held."""
        leases = self.held_leases()
        if not leases:
            return
        held = claims.extend(conn, [lease.id for lease in leases], self._lease_s)
        failpoint(failpoints.AFTER_HEARTBEAT, leases)
        with self._lock:
            for lease in leases:
                if lease.id in self._leases:
                    self._lost.update(job.id for job in lease.jobs if job.id not in held)

    def overruns(self) -> frozenset[UUID]:
        """Leases of batches that have run longer than `max_run_s` and its grace."""
        limit = time.monotonic() - self._max_run_s - OVERRUN_GRACE_S
        with self._lock:
            return frozenset(token for token, since in self._since.items() if since < limit)

    def _end_overruns(self, conn: psycopg.Connection[Any]) -> None:
        overrun = self.overruns()
        if not overrun:
            return
        log.critical("batch exceeded VESTRY_MAX_RUN_S; ending this process")
        for lease in self.held_leases():
            if lease.id not in overrun:
                with contextlib.suppress(psycopg.Error), conn.transaction():
                    transitions.release(conn, lease.id)
        os._exit(RESTART_EXIT_CODE)

    def _run(self) -> None:
        conn: psycopg.Connection[Any] | None = None
        pause_s = self._every_s
        while not self._stop.wait(pause_s):
            pause_s = self._every_s
            try:
                if conn is None or conn.closed:
                    conn = self._connect()
                # A third: another try fits before the leases expire.
                with deadline(conn, self._lease_s / 3):
                    self.extend_leases(conn)
                    self._end_overruns(conn)
                    self.unconfirmed.release(conn)
            except psycopg.Error as error:
                log.warning("heartbeat failed (%s); retrying", type(error).__name__)
                if conn is not None:
                    conn.close()
                conn = None
                # Sooner than the next interval: the leases may expire meanwhile.
                pause_s = min(1.0, self._every_s / 4)
            for task in self._periodic_tasks:
                task()
            self.last_round_at = time.monotonic()
        if conn is not None:
            conn.close()
