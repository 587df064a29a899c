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
    BackendUnavailable,
    BadAnswer,
    BadRequest,
    InferenceError,
    LocalRateLimit,
    ModelMissing,
    ProbeInProgress,
    RateLimited,
    Refused,
    Unauthorised,
)
from inference.routing.policy import Budget, Health
from models import backend_health
from models.backend_health import BreakerState

log = logging.getLogger(__name__)

Connect = Callable[[], AbstractContextManager[psycopg.Connection[Any]]]

STATE_TTL_S: Final = 0.5
"""How old the knowledge of others' breakers may be."""
MAX_PERMIT_WAIT_S: Final = 10.0
"""A call whose turn under a rate limit comes within this is waited for; a later one goes elsewhere."""
SLACK_S: Final = 1.5
"""Added to the window of a rate limit: how much sooner than an earlier one a call may get through the
network. A call that is not made within half of it asks for its turn again."""
PROBE_TIMEOUT_S: Final = 30.0
"""How long one caller has for its probe before another may make one."""

BREAKER_ERRORS: Final = (BackendUnavailable, RateLimited, Unauthorised)
"""Errors that say that nobody can be served."""
ANSWERED_ERRORS: Final = (BadAnswer, BadRequest, ModelMissing, Refused)
"""Errors that only an answer of the server's can have brought: it is there. Others may have come about
before anything was sent."""


@dataclass(frozen=True, slots=True)
class BreakerSettings:
    """When a breaker opens and for how long, in seconds.

    Attributes:
        failures: so many in a row open it.
        cooldown_s: how long it stays open the first time; doubled each time it opens again.
        longest_s: at most this long.
    """

    failures: int = 3
    cooldown_s: float = 5.0
    max_cooldown_s: float = 300.0


class BackendGuard:
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
        limits: BreakerSettings | None = None,
        budget: Decimal | None = None,
    ) -> None:
        self._connect = connect
        self._keys = {entry.name: breaker_key(entry) for entry in catalogue.backends}
        self._breaker = limits or BreakerSettings()
        self._daily_budget = budget
        self._lock = threading.Lock()
        self._read_at = -STATE_TTL_S
        self._states: dict[str, BreakerState] = {}
        self._spent = Decimal(0)

    def health(self) -> Health:
        """Which servers cannot be called now, and why; a half-open breaker lets one try."""
        return self._unavailable(lambda standing: standing.away_s > 0 or standing.probing)

    def unhealthy(self) -> Health:
        """Which servers are not known to be well: the half-open ones too, until one has tried.

        For whole lines of jobs: they do not follow a server that is only being tried.
        """
        return self._unavailable(lambda standing: standing.open)

    def _unavailable(self, is_away: Callable[[BreakerState], bool]) -> Health:
        known = self._refreshed_states()
        return {
            name: standing.reason or "unavailable"
            for name, key in self._keys.items()
            if (standing := known.get(key)) is not None and is_away(standing)
        }

    def budget(self) -> Budget:
        """What clouds may still cost."""
        self._refreshed_states()
        return Budget(self._daily_budget, self._spent)

    def wait_s(self, backend: BackendEntry) -> float:
        """Seconds until a server may be called again, a breath more so that it is."""
        standing = self._refreshed_states().get(breaker_key(backend))
        return max(1.0, standing.away_s + STATE_TTL_S if standing is not None else 0.0)

    def before_call(self, backend: BackendEntry) -> bool:
        """Ask to call a server now: a half-open breaker lets one through, to whom this is True.

        Raises:
            StillAway: somebody else is probing it.
        """
        if backend.url is None:
            return False
        key = breaker_key(backend)
        standing = self._refreshed_states().get(key)
        if standing is None or not standing.open:
            return False
        try:
            mine = self._probe(key)
        except psycopg.Error as error:
            _log_database_error(error)
            raise ProbeInProgress from None
        if not mine:
            self._invalidate()
            raise ProbeInProgress
        return True

    def acquire_permit(self, backend: BackendEntry) -> None:
        """Wait for a turn under a backend's limit of calls a minute, if it has one.

        Raises:
            OverLimit: it is too far off; `retry_after` says when it comes.
        """
        if (limit := backend.calls_in_window) is None:
            return
        try:
            self._acquire(breaker_key(backend), limit, backend.rate_window_s)
        except psycopg.Error as error:
            _log_database_error(error)
            raise LocalRateLimit(retry_after=MAX_PERMIT_WAIT_S) from None

    def after_call(self, backend: BackendEntry, error: InferenceError | None) -> None:
        """The call is over: note what it says of the server. An answer is worth more than the note."""
        if backend.url is None:
            return
        try:
            self._record(breaker_key(backend), error)
        except psycopg.Error as away:
            _log_database_error(away)

    def _record(self, key: str, error: InferenceError | None) -> None:
        if isinstance(error, BREAKER_ERRORS) and not isinstance(error, LocalRateLimit):
            with self._connect() as conn:
                backend_health.record_failure(
                    conn,
                    key,
                    error.code,
                    retry_after_s=self._retry_after(error),
                    threshold=self._breaker.failures,
                    cooldown_s=self._breaker.cooldown_s,
                    longest_s=self._breaker.max_cooldown_s,
                )
            self._invalidate()
        elif key in self._states and not isinstance(error, LocalRateLimit):
            with self._connect() as conn:
                if error is None or isinstance(error, ANSWERED_ERRORS):
                    backend_health.record_success(conn, key)
                else:
                    backend_health.release_probe(conn, key)
            self._invalidate()

    def _retry_after(self, error: InferenceError) -> float | None:
        if not isinstance(error, RateLimited):
            return None
        return min(self._breaker.max_cooldown_s, error.retry_after or self._breaker.cooldown_s)

    def _probe(self, name: str) -> bool:
        with self._connect() as conn:
            return backend_health.try_probe(conn, name, PROBE_TIMEOUT_S)

    def _acquire(self, name: str, limit: int, window_s: float) -> None:
        while True:
            with self._connect() as conn:
                wait_s = backend_health.acquire_permit(
                    conn, name, limit, window_s + SLACK_S, MAX_PERMIT_WAIT_S
                )
            if wait_s < 0:
                raise LocalRateLimit(retry_after=-wait_s)
            due = time.monotonic() + wait_s
            time.sleep(wait_s)
            if time.monotonic() - due < SLACK_S / 2:
                return

    def _refreshed_states(self) -> dict[str, BreakerState]:
        with self._lock:
            if time.monotonic() - self._read_at >= STATE_TTL_S:
                try:
                    with self._connect() as conn:
                        self._states = backend_health.breaker_states(conn)
                        if self._daily_budget is not None:
                            self._spent = backend_health.spent_today(conn)
                except psycopg.Error as error:
                    # What was known last will do: that the database is away is no job's fault.
                    _log_database_error(error)
                self._read_at = time.monotonic()
            return self._states

    def _invalidate(self) -> None:
        """Read again before the next decision: something changed just now."""
        with self._lock:
            self._read_at = -STATE_TTL_S


def _log_database_error(error: psycopg.Error) -> None:
    log.warning("the database was not asked about backends (%s)", type(error).__name__)


def breaker_key(backend: BackendEntry) -> str:
    """What a breaker is kept under: a cloud's name, and for servers of our own each by its address.

    Two of those may serve one backend: one beside bulk work and one for those who wait.
    """
    if backend.locality == "cloud" or backend.url is None:
        return backend.name
    return f"{backend.name} at {urlsplit(backend.url).netloc.rpartition('@')[2]}"
