"""Circuit breakers, rate limits and cloud spending of backends, shared by all workers.

The state is in Postgres: failures are counted over all processes, a rate limit holds over all
processes, and a half-open breaker admits one probe. Models in the worker's own process have no
breaker: their failures are no evidence about other processes.
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
"""Longest age of the cached breaker states."""
MAX_PERMIT_WAIT_S: Final = 10.0
"""A call waits at most this long for a permit under a rate limit; beyond it, the job is rerouted."""
SLACK_S: Final = 1.5
"""Added to the window of a rate limit: a call's delay from permit to server may be this much shorter
than an earlier call's. A call that is not made within half of it acquires another permit."""
PROBE_TIMEOUT_S: Final = 30.0
"""After a probe has had no result for this long, another caller may probe."""

BREAKER_ERRORS: Final = (BackendUnavailable, RateLimited, Unauthorised)
"""Errors that count as failures of the server: no request would be served."""
ANSWERED_ERRORS: Final = (BadAnswer, BadRequest, ModelMissing, Refused)
"""Errors that prove that the server responded. Others may have occurred before anything was sent."""


@dataclass(frozen=True, slots=True)
class BreakerSettings:
    """When a breaker opens and for how long, in seconds.

    Attributes:
        failures: failures in a row that open it.
        cooldown_s: how long it stays open the first time; doubled each time it opens again.
        max_cooldown_s: longest cooldown.
    """

    failures: int = 3
    cooldown_s: float = 5.0
    max_cooldown_s: float = 300.0


class BackendGuard:
    """The guard of one process. Threads share it. See `inference.routing.router.CallGuard`.

    Args:
        connect: opens a connection that commits at the end of its block.
        catalogue: restricted to the enabled backends.
        breaker: settings of the circuit breakers.
        budget: limit of spending on clouds, in US dollars per day; None for no limit.
    """

    def __init__(
        self,
        connect: Connect,
        catalogue: Catalogue,
        breaker: BreakerSettings | None = None,
        budget: Decimal | None = None,
    ) -> None:
        self._connect = connect
        self._keys = {entry.name: breaker_key(entry) for entry in catalogue.backends}
        self._breaker = breaker or BreakerSettings()
        self._daily_budget = budget
        self._lock = threading.Lock()
        self._read_at = -STATE_TTL_S
        self._states: dict[str, BreakerState] = {}
        self._spent = Decimal(0)

    def health(self) -> Health:
        """Servers that cannot be called now, and why; a half-open breaker admits one call."""
        return self._unavailable(lambda state: state.retry_in_s > 0 or state.probing)

    def unhealthy(self) -> Health:
        """Servers whose breaker is open or half-open, and why.

        For the routes of whole queues: these do not follow a server that is only being probed.
        """
        return self._unavailable(lambda state: state.open)

    def _unavailable(self, is_unavailable: Callable[[BreakerState], bool]) -> Health:
        states = self._refreshed_states()
        return {
            name: state.reason or "unavailable"
            for name, key in self._keys.items()
            if (state := states.get(key)) is not None and is_unavailable(state)
        }

    def budget(self) -> Budget:
        """Limit and amount of today's spending on clouds."""
        self._refreshed_states()
        return Budget(self._daily_budget, self._spent)

    def wait_s(self, backend: BackendEntry) -> float:
        """Seconds until a server may be called again, plus the age of the cached states."""
        state = self._refreshed_states().get(breaker_key(backend))
        return max(1.0, state.retry_in_s + STATE_TTL_S if state is not None else 0.0)

    def before_call(self, backend: BackendEntry) -> bool:
        """Circuit-breaker check before a call. Returns True if this call is the half-open probe.

        Raises:
            ProbeInProgress: another call is probing the server.
        """
        if backend.url is None:
            return False
        key = breaker_key(backend)
        state = self._refreshed_states().get(key)
        if state is None or not state.open:
            return False
        try:
            is_probe = self._probe(key)
        except psycopg.Error as error:
            _log_database_error(error)
            raise ProbeInProgress from None
        if not is_probe:
            self._invalidate()
            raise ProbeInProgress
        return True

    def acquire_permit(self, backend: BackendEntry) -> None:
        """Wait for a permit under a backend's limit of calls per minute, if it has one.

        Raises:
            LocalRateLimit: the wait would be too long; `retry_after` is the wait.
        """
        if (limit := backend.calls_in_window) is None:
            return
        try:
            self._acquire(breaker_key(backend), limit, backend.rate_window_s)
        except psycopg.Error as error:
            _log_database_error(error)
            raise LocalRateLimit(retry_after=MAX_PERMIT_WAIT_S) from None

    def after_call(self, backend: BackendEntry, error: InferenceError | None) -> None:
        """Record the end of a call. A database error is only logged: the result must not be lost."""
        if backend.url is None:
            return
        try:
            self._record(breaker_key(backend), error)
        except psycopg.Error as database_error:
            _log_database_error(database_error)

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
                    max_cooldown_s=self._breaker.max_cooldown_s,
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
                    # The last states are used: a lost database must fail no job here.
                    _log_database_error(error)
                self._read_at = time.monotonic()
            return self._states

    def _invalidate(self) -> None:
        """Have the states read again before the next decision."""
        with self._lock:
            self._read_at = -STATE_TTL_S


def _log_database_error(error: psycopg.Error) -> None:
    log.warning(
        "backend health not read or written (%s); using the last state", type(error).__name__
    )


def breaker_key(backend: BackendEntry) -> str:
    """The key of a breaker: a cloud's name, or the name and address of a local server.

    A backend may have two local servers, one for interactive and one for bulk work.
    """
    if backend.locality == "cloud" or backend.url is None:
        return backend.name
    return f"{backend.name} at {urlsplit(backend.url).netloc.rpartition('@')[2]}"
