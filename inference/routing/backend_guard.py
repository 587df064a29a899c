"""What all workers together know of the servers they call: circuit breakers, rate limits, spending.

The knowledge is in Postgres, so that the third failure in a row is the third of anybody's, a limit
holds over all processes, and one probe is made of a server that may be back. Models in the worker's
own process have no breaker: what befalls them says nothing of other processes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final
from urllib.parse import urlsplit

import psycopg

from inference.catalogue.schema import BackendEntry, Catalogue
from inference.errors import (
    BadAnswer,
    BadRequest,
    InferenceError,
    ModelMissing,
    OverLimit,
    RateLimited,
    Refused,
    StillAway,
    Unauthorised,
    Unavailable,
)
from inference.routing.policy import Budget, Health
from models import backend_health
from models.backend_health import Standing

log = logging.getLogger(__name__)

Connect = Callable[[], AbstractContextManager[psycopg.Connection[Any]]]

FRESH_S: Final = 0.5
"""How old the knowledge of others' breakers may be."""
SHORT_WAIT_S: Final = 10.0
"""A call whose turn under a rate limit comes within this is waited for; a later one goes elsewhere."""
WINDOW_S: Final = 60.0
SLACK_S: Final = 1.5
"""Added to the window of a rate limit: how much sooner than an earlier one a call may get through the
network. A call that is not made within half of it asks for its turn again."""
PROBE_S: Final = 30.0
"""How long one caller has for its probe before another may make one."""

BREAKS: Final = (Unavailable, RateLimited, Unauthorised)
"""Errors that say that nobody can be served."""
ANSWERS: Final = (BadAnswer, BadRequest, ModelMissing, Refused)
"""Errors that only an answer of the server's can have brought: it is there. Others may have come about
before anything was sent."""


@dataclass(frozen=True, slots=True)
class Limits:
    """When a breaker opens and for how long, in seconds.

    Attributes:
        failures: so many in a row open it.
        cooldown_s: how long it stays open the first time; doubled each time it opens again.
        longest_s: at most this long.
    """

    failures: int = 3
    cooldown_s: float = 5.0
    longest_s: float = 300.0


class Gate:
    """One process's view. Threads share it. See `inference.routing.router.Gate`.

    Args:
        connect: gives a connection that commits at the end of its block.
        catalogue: restricted to the enabled backends.
        limits: of breakers.
        budget: what clouds may cost in US dollars a day; None for no limit.
    """

    def __init__(
        self,
        connect: Connect,
        catalogue: Catalogue,
        limits: Limits | None = None,
        budget: Decimal | None = None,
    ) -> None:
        self._connect = connect
        self._keys = {entry.name: key_of(entry) for entry in catalogue.backends}
        self._limits = limits or Limits()
        self._limit = budget
        self._lock = threading.Lock()
        self._read_at = -FRESH_S
        self._standings: dict[str, Standing] = {}
        self._spent = Decimal(0)

    def health(self) -> Health:
        """Which servers cannot be called now, and why; a half-open breaker lets one try."""
        return self._away(lambda standing: standing.away_s > 0 or standing.probed)

    def settled(self) -> Health:
        """Which servers are not known to be well: the half-open ones too, until one has tried.

        For whole lines of jobs: they do not follow a server that is only being tried.
        """
        return self._away(lambda standing: standing.open)

    def _away(self, is_away: Callable[[Standing], bool]) -> Health:
        known = self._known()
        return {
            name: standing.reason or "unavailable"
            for name, key in self._keys.items()
            if (standing := known.get(key)) is not None and is_away(standing)
        }

    def budget(self) -> Budget:
        """What clouds may still cost."""
        self._known()
        return Budget(self._limit, self._spent)

    def wait_s(self, backend: BackendEntry) -> float:
        """Seconds until a server may be called again, a breath more so that it is."""
        standing = self._known().get(key_of(backend))
        return max(1.0, standing.away_s + FRESH_S if standing is not None else 0.0)

    def enter(self, backend: BackendEntry) -> bool:
        """Ask to call a server now: a half-open breaker lets one through, to whom this is True.

        Raises:
            StillAway: somebody else is probing it.
        """
        if backend.url is None:
            return False
        key = key_of(backend)
        standing = self._known().get(key)
        if standing is None or not standing.open:
            return False
        try:
            mine = self._probe(key)
        except psycopg.Error as error:
            _unasked(error)
            raise StillAway from None
        if not mine:
            self._forget()
            raise StillAway
        return True

    def turn(self, backend: BackendEntry) -> None:
        """Wait for a turn under a backend's limit of calls a minute, if it has one.

        Raises:
            OverLimit: it is too far off; `retry_after` says when it comes.
        """
        if backend.requests_per_minute is None:
            return
        try:
            self._take_turn(key_of(backend), backend.requests_per_minute)
        except psycopg.Error as error:
            _unasked(error)
            raise OverLimit(retry_after=SHORT_WAIT_S) from None

    def left(self, backend: BackendEntry, error: InferenceError | None) -> None:
        """The call is over: note what it says of the server. An answer is worth more than the note."""
        if backend.url is None:
            return
        try:
            self._note(key_of(backend), error)
        except psycopg.Error as away:
            _unasked(away)

    def _note(self, key: str, error: InferenceError | None) -> None:
        if isinstance(error, BREAKS) and not isinstance(error, OverLimit):
            with self._connect() as conn:
                backend_health.failed(
                    conn,
                    key,
                    error.code,
                    retry_after_s=self._retry_after(error),
                    threshold=self._limits.failures,
                    cooldown_s=self._limits.cooldown_s,
                    longest_s=self._limits.longest_s,
                )
            self._forget()
        elif key in self._standings and not isinstance(error, OverLimit):
            with self._connect() as conn:
                if error is None or isinstance(error, ANSWERS):
                    backend_health.succeeded(conn, key)
                else:
                    backend_health.released(conn, key)
            self._forget()

    def _retry_after(self, error: InferenceError) -> float | None:
        if not isinstance(error, RateLimited):
            return None
        return min(self._limits.longest_s, error.retry_after or self._limits.cooldown_s)

    def _probe(self, name: str) -> bool:
        with self._connect() as conn:
            return backend_health.probe(conn, name, PROBE_S)

    def _take_turn(self, name: str, limit: int) -> None:
        while True:
            with self._connect() as conn:
                wait_s = backend_health.take_turn(
                    conn, name, limit, WINDOW_S + SLACK_S, SHORT_WAIT_S
                )
            if wait_s < 0:
                raise OverLimit(retry_after=-wait_s)
            due = time.monotonic() + wait_s
            time.sleep(wait_s)
            if time.monotonic() - due < SLACK_S / 2:
                return

    def _known(self) -> dict[str, Standing]:
        with self._lock:
            if time.monotonic() - self._read_at >= FRESH_S:
                try:
                    with self._connect() as conn:
                        self._standings = backend_health.standings(conn)
                        if self._limit is not None:
                            self._spent = backend_health.spent_today(conn)
                except psycopg.Error as error:
                    # What was known last will do: that the database is away is no job's fault.
                    _unasked(error)
                self._read_at = time.monotonic()
            return self._standings

    def _forget(self) -> None:
        """Read again before the next decision: something changed just now."""
        with self._lock:
            self._read_at = -FRESH_S


def _unasked(error: psycopg.Error) -> None:
    log.warning("the database was not asked about backends (%s)", type(error).__name__)


def key_of(backend: BackendEntry) -> str:
    """What a breaker is kept under: a cloud's name, and for servers of our own each by its address.

    Two of those may serve one backend: one beside bulk work and one for those who wait.
    """
    if backend.locality == "cloud" or backend.url is None:
        return backend.name
    return f"{backend.name} at {urlsplit(backend.url).netloc.rpartition('@')[2]}"
