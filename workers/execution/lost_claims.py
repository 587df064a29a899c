"""Claims whose answer was lost: leases that may be there, and that nobody runs."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import psycopg

from models import transitions
from models.claims import Lease

LOCK_TIMEOUT_MS: Final = 200
"""How long a job is waited for that somebody's open transaction holds. It is asked for again."""
LOCK_ERRORS: Final = (psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled)
"""What says that somebody does. The connection is as good as before."""


@dataclass(slots=True)
class _UnconfirmedClaim:
    lease: Lease
    since: float
    checked: bool = False


class UnconfirmedClaims:
    """What a process may hold without knowing. One per process, used by several threads.

    Left alone such a lease would count as a crash of its jobs, though nothing ran.

    Args:
        lease_s: how long a lease lasts.
    """

    def __init__(self, lease_s: float) -> None:
        self._lease_s = lease_s
        self._lock = threading.Lock()
        self._claims: dict[UUID, _UnconfirmedClaim] = {}

    def add(self, lease: Lease) -> None:
        """Whether this lease was committed nobody has told us."""
        with self._lock:
            self._claims[lease.id] = _UnconfirmedClaim(lease, time.monotonic())

    def pending(self, *, unchecked: bool = False) -> bool:
        """Whether there may be such a lease.

        Args:
            unchecked: one for which the database was not asked yet.
        """
        with self._lock:
            return any(not (unchecked and claim.checked) for claim in self._claims.values())

    def release(self, conn: psycopg.Connection[Any]) -> None:
        """Give back those that are there, with no attempt spent.

        A COMMIT may still be on its way through a network that holds it up: what is not there is asked
        for again until its lease would have run out.

        Args:
            conn: a connection in no transaction; each lease is a transaction of its own.

        Raises:
            psycopg.Error: the database is away.
        """
        with self._lock:
            claims = list(self._claims.items())
        for token, claim in claims:
            run_out = time.monotonic() > claim.since + self._lease_s
            found = _release_unconfirmed(conn, claim.lease)
            with self._lock:
                claim.checked = True
                if found or (run_out and found is not None):
                    self._claims.pop(token, None)


def _release_unconfirmed(conn: psycopg.Connection[Any], lease: Lease) -> bool | None:
    """Whether there was anything to undo; None where somebody's open transaction hides it."""
    jobs = [job.id for job in lease.jobs]
    try:
        with conn.transaction():
            conn.execute("SELECT set_config('lock_timeout', %s, true)", [str(LOCK_TIMEOUT_MS)])
            return transitions.release_unconfirmed(conn, lease.id, jobs, exclusive=lease.exclusive)
    except LOCK_ERRORS:
        return None
