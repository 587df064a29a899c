"""Claims whose answer was lost: leases that may be there, and that nobody runs."""

from __future__ import annotations

import threading
import time
from typing import Any
from uuid import UUID

import psycopg

from models import transitions


class Unheard:
    """What a process may hold without knowing. One per process, used by several threads.

    Left alone such a lease would count as a crash of its jobs, though nothing ran.

    Args:
        lease_s: how long a lease lasts.
    """

    def __init__(self, lease_s: float) -> None:
        self._lease_s = lease_s
        self._lock = threading.Lock()
        self._since: dict[UUID, float] = {}
        self._asked: set[UUID] = set()

    def add(self, token: UUID) -> None:
        """Whether this lease was committed nobody has told us."""
        with self._lock:
            self._since[token] = time.monotonic()

    def any(self, *, unasked: bool = False) -> bool:
        """Whether there may be such a lease.

        Args:
            unasked: one for which the database was not asked yet.
        """
        with self._lock:
            return bool(self._since.keys() - self._asked if unasked else self._since)

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
            since = dict(self._since)
        for token, at in since.items():
            run_out = time.monotonic() > at + self._lease_s
            with conn.transaction():
                found = transitions.hand_back(conn, token) > 0
            with self._lock:
                if found or run_out:
                    self._since.pop(token, None)
                    self._asked.discard(token)
                elif token in self._since:
                    self._asked.add(token)
