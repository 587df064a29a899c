"""Shared state of backends: circuit breakers, rate limits, spending and routes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import psycopg

Connection = psycopg.Connection[Any]

MOVE_BATCH_ROWS: Final = 2000
"""Jobs examined in one transaction when routes change."""
MovePosition = tuple[int, UUID]
"""Position in a (lane, kind) queue: the start tag and the id of a job."""
QUEUE_START: Final[MovePosition] = (-(2**63), UUID(int=0))


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


@dataclass(frozen=True, slots=True)
class Route:
    """Pool and model of one sort of request; the task or tier '' matches those without a route."""

    kind: str
    task: str
    privacy: str
    latency: str
    quality: str
    tier: str
    pool: str
    model: str


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


def publish(conn: Connection, routes: Sequence[Route]) -> list[Route]:
    """Replace the published routes, in the caller's transaction; returns the new and changed ones."""
    before = {
        tuple(row[:6]): Route(*row)
        for row in conn.execute(
            "SELECT kind, task, privacy, latency, quality, tier, pool, model FROM vestry.routes"
        )
    }
    after = {(r.kind, r.task, r.privacy, r.latency, r.quality, r.tier): r for r in routes}
    changed = [route for key, route in after.items() if before.get(key) != route]
    removed = before.keys() - after.keys()
    if changed or removed:
        conn.execute("LOCK TABLE vestry.routes IN SHARE ROW EXCLUSIVE MODE")
    with conn.cursor() as cursor:
        cursor.executemany(
            """DELETE FROM vestry.routes WHERE kind = %s AND task = %s AND privacy = %s
               AND latency = %s AND quality = %s AND tier = %s""",
            list(removed),
        )
        cursor.executemany(
            """INSERT INTO vestry.routes (kind, task, privacy, latency, quality, tier, pool, model)
               VALUES (%s, %s, %s, %s, %s, %s, %s, %s)
               ON CONFLICT (kind, task, privacy, latency, quality, tier)
               DO UPDATE SET pool = excluded.pool, model = excluded.model""",
            [
                (r.kind, r.task, r.privacy, r.latency, r.quality, r.tier, r.pool, r.model)
                for r in changed
            ],
        )
    return changed


def move_jobs(
    conn: Connection, lane: str, kind: str, after: MovePosition
) -> tuple[int, MovePosition | None]:
    """Move the jobs of one page of a queue to the pools of the published routes.

    Args:
        conn: a connection.
        lane: the lane of the queue.
        kind: the kind of the queue.
        after: the position after which the page begins.

    Returns:
        How many jobs moved, and the position after which the next page begins; None at the end.
    """
    row = conn.execute(
        "SELECT moved, last_start_tag, last_id FROM vestry.move_jobs_v1(%s, %s, %s, %s, %s)",
        [lane, kind, *after, MOVE_BATCH_ROWS],
    ).fetchone()
    assert row is not None  # noqa: S101 - a function call has one row
    return int(row[0]), None if row[1] is None else (row[1], row[2])
