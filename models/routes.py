"""Published routes: the pool and model of each sort of request; moving queued jobs to their pools."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
