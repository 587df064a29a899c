"""Breakers, turns under rate limits, spending and routes: what all processes share about backends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg

Connection = psycopg.Connection[Any]


@dataclass(frozen=True, slots=True)
class BreakerState:
    """A backend that failed lately.

    Attributes:
        open: its breaker is not closed: open, or half-open once `away_s` is over.
        away_s: seconds until it may be called again; negative or 0 when it may.
        probed: somebody is trying it just now.
        reason: the code of its last error.
    """

    open: bool
    retry_in_s: float
    probing: bool
    reason: str | None


@dataclass(frozen=True, slots=True)
class Route:
    """Where requests of one sort go; '' stands for any task or tier without a line of its own."""

    kind: str
    task: str
    privacy: str
    latency: str
    quality: str
    tier: str
    pool: str
    model: str


def breaker_states(conn: Connection) -> dict[str, BreakerState]:
    """Backends that failed lately, by name; the others are well."""
    rows = conn.execute(
        """SELECT backend, open_until IS NOT NULL,
                  coalesce(extract(epoch FROM open_until - now.t), 0)::float8,
                  coalesce(probing_until > now.t, false), reason
           FROM vestry.backend_health, (SELECT vestry.clock() AS t OFFSET 0) now
           WHERE failures > 0 OR open_until IS NOT NULL""",
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
    """Note a failed call; see `vestry.backend_failed_v1`."""
    conn.execute(
        "SELECT vestry.backend_failed_v1(%s, %s, %s, %s, %s, %s)",
        [backend, reason, retry_after_s, threshold, cooldown_s, max_cooldown_s],
    )


def record_success(conn: Connection, backend: str) -> None:
    """Close the breaker."""
    conn.execute("SELECT vestry.backend_succeeded_v1(%s)", [backend])


def release_probe(conn: Connection, backend: str) -> None:
    """Give a probe back that told nothing; the next caller may make one."""
    conn.execute("SELECT vestry.backend_released_v1(%s)", [backend])


def try_probe(conn: Connection, backend: str, for_s: float) -> bool:
    """Take the one probe of a half-open breaker; False where somebody else has it."""
    row = conn.execute("SELECT vestry.backend_probe_v1(%s, %s)", [backend, for_s]).fetchone()
    return row is not None and bool(row[0])


def acquire_permit(
    conn: Connection, backend: str, limit: int, window_s: float, max_wait_s: float
) -> float:
    """Reserve a call under a rate limit; see `vestry.acquire_permit_v1`.

    Returns:
        Seconds to wait before it; minus the seconds where that is beyond `patience_s`.
    """
    row = conn.execute(
        "SELECT vestry.acquire_permit_v1(%s, %s, %s, %s)", [backend, limit, window_s, max_wait_s]
    ).fetchone()
    assert row is not None  # noqa: S101 - a function call has one row
    return float(row[0])


def spent_today(conn: Connection) -> Decimal:
    """What clouds cost today (UTC), in US dollars."""
    row = conn.execute(
        """SELECT coalesce(sum(cost), 0) FROM vestry.spending
           WHERE day = (vestry.clock() AT TIME ZONE 'UTC')::date"""
    ).fetchone()
    assert row is not None  # noqa: S101 - an aggregate always has a row
    return Decimal(row[0])


def publish(conn: Connection, routes: Sequence[Route]) -> list[Route]:
    """Make the published routes these, in the caller's transaction; those that are new or changed."""
    before = {
        tuple(row[:6]): Route(*row)
        for row in conn.execute(
            "SELECT kind, task, privacy, latency, quality, tier, pool, model FROM vestry.routes"
        )
    }
    wanted = {(r.kind, r.task, r.privacy, r.latency, r.quality, r.tier): r for r in routes}
    changed = [route for key, route in wanted.items() if before.get(key) != route]
    gone = before.keys() - wanted.keys()
    if changed or gone:
        conn.execute("LOCK TABLE vestry.routes IN SHARE ROW EXCLUSIVE MODE")
    with conn.cursor() as cursor:
        cursor.executemany(
            """DELETE FROM vestry.routes WHERE kind = %s AND task = %s AND privacy = %s
               AND latency = %s AND quality = %s AND tier = %s""",
            list(gone),
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


MOVE_BATCH_ROWS = 2000
"""Jobs looked at in one transaction when routes change."""
MovePosition = tuple[int, UUID]
"""Where in a line one is: the start tag and the id of a job."""
BEGINNING: MovePosition = (-(2**63), UUID(int=0))


def move_jobs(
    conn: Connection, lane: str, kind: str, after: MovePosition
) -> tuple[int, MovePosition | None]:
    """Have the jobs of one stretch of a line go where the routes now send them.

    Args:
        conn: a connection.
        lane: the lane they stand in.
        kind: their kind.
        after: where the stretch begins.

    Returns:
        How many went, and where the next stretch begins; None at the end of the line.
    """
    row = conn.execute(
        "SELECT moved, last_start_tag, last_id FROM vestry.move_jobs_v1(%s, %s, %s, %s, %s)",
        [lane, kind, *after, MOVE_BATCH_ROWS],
    ).fetchone()
    assert row is not None  # noqa: S101 - it returns one row
    return int(row[0]), None if row[1] is None else (row[1], row[2])
