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

LOCK_WAIT_MS: Final = 200
"""How long a job is waited for that somebody's open transaction holds. It is asked for again."""
HELD: Final = (psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled)
"""What says that somebody does. The connection is as good as before."""


@dataclass(slots=True)
class _Claim:
    lease: Lease
    since: float
    asked: bool = False


class Unheard:
    """What a process may hold without knowing. One per process, used by several threads.

    Left alone such a lease would count as a crash of its jobs, though nothing ran.

    Args:
        lease_s: how long a lease lasts.
    """

    def __init__(self, lease_s: float) -> None:
        self._lease_s = lease_s
        self._lock = threading.Lock()
        self._claims: dict[UUID, _Claim] = {}

    def add(self, lease: Lease) -> None:
        """Whether this lease was committed nobody has told us."""
        with self._lock:
            self._claims[lease.id] = _Claim(lease, time.monotonic())

    def any(self, *, unasked: bool = False) -> bool:
        """Whether there may be such a lease.

        Args:
            unasked: one for which the database was not asked yet.
        """
        with self._lock:
            return any(not (unasked and claim.asked) for claim in self._claims.values())

    def hand_back(self, conn: psycopg.Connection[Any]) -> None:
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
            found = _take_back(conn, claim.lease)
            with self._lock:
                claim.asked = True
                if found or (run_out and found is not None):
                    self._claims.pop(token, None)


def _take_back(conn: psycopg.Connection[Any], lease: Lease) -> bool | None:
    """Whether there was anything to undo; None where somebody's open transaction hides it."""
    jobs = [job.id for job in lease.jobs]
    try:
        with conn.transaction():
            conn.execute("SELECT set_config('lock_timeout', %s, true)", [str(LOCK_WAIT_MS)])
            return transitions.take_back(conn, lease.id, jobs, alone=lease.alone)
    except HELD:
        return None
