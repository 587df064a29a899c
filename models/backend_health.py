"""Shared state of backends: circuit breakers, rate limits and spending."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import psycopg

Connection = psycopg.Connection[Any]


@dataclass(frozen=True, slots=True)
class BreakerState:
    """Circuit breaker of a backend that failed recently.

    Attributes:
        open: it is open, or half-open (`retry_in_s` is 0).
        retry_in_s: seconds until the next probe is allowed; 0 if it is allowed now.
        probing: a caller has the half-open probe.
        reason: the code of the last error.
    """

    open: bool
    retry_in_s: float
    probing: bool
    reason: str | None


def breaker_states(conn: Connection) -> dict[str, BreakerState]:
    """Circuit breakers by backend; a backend without an entry has no failure, and a closed breaker."""
    rows = conn.execute(
        """SELECT backend, state <> 'closed', coalesce(open_s, 0), probing, reason
           FROM vestry.breakers_v1()""",
        prepare=True,
    ).fetchall()
    return {row[0]: BreakerState(*row[1:]) for row in rows}


def record_failure(
    conn: Connection,
    backend: str,
    reason: str,
    *,
    retry_after_s: float | None,
    threshold: int,
    cooldown_s: float,
    max_cooldown_s: float,
) -> None:
    """Record a failed call; see `vestry.backend_failed_v1`."""
    conn.execute(
        "SELECT vestry.backend_failed_v1(%s, %s, %s, %s, %s, %s)",
        [backend, reason, retry_after_s, threshold, cooldown_s, max_cooldown_s],
    )


def record_success(conn: Connection, backend: str) -> None:
    """Record a successful call: close the breaker."""
    conn.execute("SELECT vestry.backend_succeeded_v1(%s)", [backend])


def release_probe(conn: Connection, backend: str) -> None:
    """Release a half-open probe without a result; the next caller may probe."""
    conn.execute("SELECT vestry.backend_released_v1(%s)", [backend])


def try_probe(conn: Connection, backend: str, for_s: float) -> bool:
    """Take the one probe of a half-open breaker; False if another caller has it."""
    row = conn.execute("SELECT vestry.backend_probe_v1(%s, %s)", [backend, for_s]).fetchone()
    return row is not None and bool(row[0])


def acquire_permit(
    conn: Connection, backend: str, limit: int, window_s: float, max_wait_s: float
) -> float:
    """Reserve a call under a rate limit; see `vestry.acquire_permit_v1`.

    Returns:
        Seconds to wait before the call; negative, and nothing reserved, if more than `max_wait_s`.
    """
    row = conn.execute(
        "SELECT vestry.acquire_permit_v1(%s, %s, %s, %s)", [backend, limit, window_s, max_wait_s]
    ).fetchone()
    assert row is not None  # noqa: S101 - a function call has one row
    return float(row[0])


def spent_today(conn: Connection) -> Decimal:
    """Cost of cloud calls today (UTC), in US dollars."""
    row = conn.execute(
        """SELECT coalesce(sum(cost), 0) FROM vestry.spending
           WHERE day = (vestry.clock() AT TIME ZONE 'UTC')::date"""
    ).fetchone()
    assert row is not None  # noqa: S101 - an aggregate always has a row
    return Decimal(row[0])
