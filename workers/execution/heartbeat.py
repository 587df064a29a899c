"""Keeps a process's leases alive, on a connection and thread of its own."""

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
from workers.db import deadline
from workers.execution.lost_claims import UnconfirmedClaims

log = logging.getLogger(__name__)


OVERRUN_GRACE_S = 5.0
"""How far past its longest run time a batch may be before the process is ended."""
OVERRUN_EXIT_CODE = 75
"""Exit code of a process that ended itself (EX_TEMPFAIL of sysexits.h); its supervisor restarts it."""


class Heartbeat:
    """Extends every lease the process holds and learns which jobs it has lost.

    It is the watchdog, too: a thread cannot be stopped from outside, so a process with a batch that
    runs past `max_run_s` ends itself. The other batches are handed back first, at no cost to them.

    With each beat it hands back what was claimed without an answer, and does the process's chores,
    which are quick and raise nothing.

    A connection of its own, because the pool's may all be waiting in finishing transactions.
    """

    def __init__(
        self,
        connect: Callable[[], psycopg.Connection[Any]],
        lease_s: float,
        every_s: float,
        max_run_s: float,
        periodic_tasks: Sequence[Callable[[], None]] = (),
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
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self.unconfirmed = UnconfirmedClaims(lease_s)
        self.last_round_at = time.monotonic()
        """When the thread last went round, whatever it met with."""

    def start(self) -> None:
        """Begin beating."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; leases are left as they are."""
        self._stop.set()

    def add(self, lease: Lease) -> None:
        """Keep a lease alive from now on."""
        with self._lock:
            self._leases[lease.id] = lease
            self._since[lease.id] = time.monotonic()

    def remove(self, lease: Lease) -> None:
        """The batch is over."""
        with self._lock:
            self._leases.pop(lease.id, None)
            self._since.pop(lease.id, None)
            self._lost.difference_update(job.id for job in lease.jobs)

    def release_unconfirmed(self) -> None:
        """Hand back what was claimed without an answer; the process may end before its next beat."""
        if not self.unconfirmed.pending():
            return
        try:
            with self._connect() as conn, deadline(conn, self._lease_s / 3):
                self.unconfirmed.release(conn)
        except psycopg.Error as error:
            log.warning("a claim without an answer not handed back (%s)", type(error).__name__)

    def held_leases(self) -> list[Lease]:
        """The leases in the process's hands."""
        with self._lock:
            return list(self._leases.values())

    def mark_lost(self, lease: Lease) -> None:
        """The process itself gave these jobs up."""
        with self._lock:
            self._lost.update(job.id for job in lease.jobs)

    def is_lost(self, job_id: UUID) -> bool:
        """Whether a job is known to be no longer ours."""
        return job_id in self._lost

    def extend_leases(self, conn: psycopg.Connection[Any]) -> None:
        """Extend all leases once."""
        held = self.held_leases()
        if not held:
            return
        ours = claims.extend(conn, [lease.id for lease in held], self._lease_s)
        with self._lock:
            for lease in held:
                if lease.id in self._leases:
                    self._lost.update(job.id for job in lease.jobs if job.id not in ours)

    def overruns(self) -> frozenset[UUID]:
        """Leases whose batch runs longer than any may."""
        limit = time.monotonic() - self._max_run_s - OVERRUN_GRACE_S
        with self._lock:
            return frozenset(token for token, since in self._since.items() if since < limit)

    def _end_overruns(self, conn: psycopg.Connection[Any]) -> None:
        overrun = self.overruns()
        if not overrun:
            return
        log.critical("a batch ran longer than VESTRY_MAX_RUN_S; this process ends itself")
        for lease in self.held_leases():
            if lease.id not in overrun:
                with contextlib.suppress(psycopg.Error), conn.transaction():
                    transitions.release(conn, lease.id)
        os._exit(OVERRUN_EXIT_CODE)

    def _run(self) -> None:
        conn: psycopg.Connection[Any] | None = None
        pause_s = self._every_s
        while not self._stop.wait(pause_s):
            pause_s = self._every_s
            try:
                if conn is None or conn.closed:
                    conn = self._connect()
                # Cut while there is time for another try before the leases run out.
                with deadline(conn, self._lease_s / 3):
                    self.extend_leases(conn)
                    self._end_overruns(conn)
                    self.unconfirmed.release(conn)
            except psycopg.Error as error:
                log.warning("heartbeat failed (%s); trying again", type(error).__name__)
                if conn is not None:
                    conn.close()
                conn = None
                # A dead connection must not cost a whole interval: the lease is running.
                pause_s = min(1.0, self._every_s / 4)
            for chore in self._periodic_tasks:
                chore()
            self.last_round_at = time.monotonic()
        if conn is not None:
            conn.close()
