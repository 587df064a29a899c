"""`python -m workers.reconciler`: requeues jobs of expired leases, expires jobs, prunes old ones.

Any number may run; an advisory lock lets one of them work.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import psycopg

from models import retention, transitions
from workers import failpoints, log_redaction
from workers.db import LOOP_DEADLINE_S, deadline, run_with_reconnect, stop_on_signals
from workers.failpoints import failpoint
from workers.settings import Settings, read_settings

Connection = psycopg.Connection[Any]
log = logging.getLogger(__name__)

PRUNE_EVERY_S: Final = 30.0
PRUNE_FOR_S: Final = 5.0
"""Longest pruning round, which delays rescue. It prunes about 50,000 jobs."""
PRUNE_JOBS: Final = 1000
"""Jobs pruned by one statement; fewer, for a while, after one that timed out."""
STATEMENT_S: Final = LOOP_DEADLINE_S / 3
"""Statement timeout, below LOOP_DEADLINE_S, which would close the connection."""
RETRYABLE_ERRORS: Final = (
    psycopg.errors.QueryCanceled,
    psycopg.errors.LockNotAvailable,
    psycopg.errors.DeadlockDetected,
)
"""Errors of a statement that leave the connection usable."""


class Reconciler:
    """Runs its duties every `poll_s`.

    Args:
        settings: lease and retention times.
        stop: ends the loop.
    """

    def __init__(self, settings: Settings, stop: threading.Event) -> None:
        self._settings = settings
        self._stop = stop
        self._connected_before = False
        self._prune_at = 0.0
        self._prune_jobs = PRUNE_JOBS

    def run(self, conn: Connection) -> None:
        """Reconcile until stopped or the connection breaks."""
        statement_ms = int(min(STATEMENT_S, max(1.0, self._settings.lease_s / 2)) * 1000)
        with deadline(conn, LOOP_DEADLINE_S):
            for name, limit_ms in (
                ("statement_timeout", statement_ms),
                ("lock_timeout", statement_ms // 2),
            ):
                conn.execute("SELECT set_config(%s, %s, false)", [name, str(limit_ms)])
        while not self._acquire_leadership(conn):
            if self._stop.wait(self._settings.poll_s):
                return
        # Leases could not be extended while the database was unavailable: give their holders a whole
        # lease to extend them.
        not_before = time.monotonic() + self._grace(conn)
        while not self._stop.wait(self._settings.poll_s):
            if time.monotonic() >= not_before:
                self._try(conn, self._rescue)
            self._try(conn, transitions.expire)
            if time.monotonic() >= self._prune_at:
                self._prune_at = time.monotonic() + PRUNE_EVERY_S
                succeeded = self._try(conn, self._prune)
                # The same number of jobs would time out again.
                self._prune_jobs = (
                    min(PRUNE_JOBS, self._prune_jobs * 2)
                    if succeeded
                    else max(1, self._prune_jobs // 4)
                )

    def _try(self, conn: Connection, duty: Callable[[Connection], object]) -> bool:
        """Run a duty; postpone it if a lock or a busy server delays it for too long.

        A new connection starts the grace period again; a pruning that times out each round would then
        block rescue.
        """
        try:
            with deadline(conn, LOOP_DEADLINE_S):
                duty(conn)
        except RETRYABLE_ERRORS as error:
            log.warning(
                "reconciler: %s postponed (%s); next round retries",
                duty.__name__.strip("_"),
                type(error).__name__,
            )
            return False
        return True

    def _rescue(self, conn: Connection) -> None:
        with conn.transaction():
            rescued = transitions.rescue(conn)
            failpoint(failpoints.INSIDE_RESCUE, rescued)
        failpoint(failpoints.AFTER_RESCUE, rescued)
        if rescued.quarantined or rescued.dead:
            log.warning(
                "expired leases: %d jobs quarantined, %d dead", rescued.quarantined, rescued.dead
            )

    def _prune(self, conn: Connection) -> None:
        """Prune in small transactions until nothing is left to prune or PRUNE_FOR_S has passed."""
        until = time.monotonic() + PRUNE_FOR_S
        while time.monotonic() < until and not self._stop.is_set():
            results = retention.prune_results(conn)
            jobs = retention.prune_jobs(conn, self._settings.keep_jobs_s, self._prune_jobs)
            if not results and not jobs:
                return

    def _acquire_leadership(self, conn: Connection) -> bool:
        with deadline(conn, LOOP_DEADLINE_S):
            row = conn.execute(
                "SELECT pg_try_advisory_lock(hashtextextended('vestry.reconciler', 0))"
            ).fetchone()
        return row is not None and bool(row[0])

    def _grace(self, conn: Connection) -> float:
        """Seconds until leases may count as expired: one lease after the database became available."""
        if self._connected_before:
            return self._settings.lease_s
        self._connected_before = True
        with deadline(conn, LOOP_DEADLINE_S):
            row = conn.execute(
                "SELECT extract(epoch FROM clock_timestamp() - pg_postmaster_start_time())"
            ).fetchone()
        up_s = float(row[0]) if row is not None else 0.0
        return max(0.0, self._settings.lease_s - up_s) if up_s >= 0 else self._settings.lease_s


def main() -> None:
    """Reconcile until SIGTERM or SIGINT."""
    settings = read_settings("reconciler", ("database_url",))
    log_redaction.configure(settings.log_level)
    log_redaction.own_process()
    stop = stop_on_signals()
    if settings.ready_file is not None:
        Path(settings.ready_file).touch()
    run_with_reconnect(settings, "reconciler", stop, Reconciler(settings, stop).run)


if __name__ == "__main__":
    main()
