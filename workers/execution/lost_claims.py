"""Lost claims: claims whose COMMIT result is unknown, because the reply was lost."""

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
"""Longest wait for a job that another transaction has locked; the claim is checked again later."""
LOCK_ERRORS: Final = (psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled)
"""Errors of that wait. The connection stays usable."""


@dataclass(slots=True)
class _UnconfirmedClaim:
    lease: Lease
    since: float
    checked: bool = False


class UnconfirmedClaims:
    """The process's claims whose COMMIT result is unknown. Used by several threads.

    Such a lease would otherwise expire, though nothing ran: rescue would quarantine its jobs and, if it
    is exclusive, count a crash.

    Args:
        lease_s: duration of a lease.
    """

    def __init__(self, lease_s: float) -> None:
        self._lease_s = lease_s
        self._lock = threading.Lock()
        self._claims: dict[UUID, _UnconfirmedClaim] = {}

    def add(self, lease: Lease) -> None:
        """Record a claim whose COMMIT result is unknown."""
        with self._lock:
            self._claims[lease.id] = _UnconfirmedClaim(lease, time.monotonic())

    def pending(self, *, unchecked: bool = False) -> bool:
        """Whether any claim is unconfirmed.

        Args:
            unchecked: count only claims that were never looked up in the database.
        """
        with self._lock:
            return any(not (unchecked and claim.checked) for claim in self._claims.values())

    def release(self, conn: psycopg.Connection[Any]) -> None:
        """Release the claims that were committed, with no attempt spent.

        A COMMIT may still be in transit on a slow network: a lease that does not exist is looked up
        again until it would have expired.

        Args:
            conn: a connection in no transaction; each lease is released in its own.

        Raises:
            psycopg.Error: the database is unavailable.
        """
        with self._lock:
            claims = list(self._claims.items())
        for token, claim in claims:
            expired = time.monotonic() > claim.since + self._lease_s
            released = _release_one(conn, claim.lease)
            with self._lock:
                claim.checked = True
                if released or (expired and released is not None):
                    self._claims.pop(token, None)


def _release_one(conn: psycopg.Connection[Any], lease: Lease) -> bool | None:
    """Whether the lease was found and released; None if another transaction locks its jobs."""
    jobs = [job.id for job in lease.jobs]
    try:
        with conn.transaction():
            conn.execute("SELECT set_config('lock_timeout', %s, true)", [str(LOCK_TIMEOUT_MS)])
            return transitions.release_unconfirmed(conn, lease.id, jobs, exclusive=lease.exclusive)
    except LOCK_ERRORS:
        return None
