"""What the dispatcher reads and stamps: which jobs to hint at, and that they were."""

from __future__ import annotations

import time
from typing import Any
from uuid import UUID

import psycopg

from models.picking import Mark, pick

Connection = psycopg.Connection[Any]

_STAMP = f"""
WITH picked AS MATERIALIZED ({pick(hints=True)}),
stamped AS (
  UPDATE vestry.jobs j SET hinted_at = vestry.clock()
  FROM picked WHERE j.id = picked.id RETURNING j.id)
SELECT picked.id, picked.turn,
       (SELECT turn FROM vestry.lanes WHERE lane = %(lane)s) AS lane_turn
FROM picked JOIN stamped USING (id) ORDER BY picked.turn, picked.id"""  # noqa: S608 - our own text


def stamp(
    conn: Connection, lane: str, kind: str, *, limit: int, rehint_s: float, mark: Mark
) -> list[UUID]:
    """Choose and stamp the jobs to hint at next, in the caller's transaction.

    The caller may commit asynchronously: a stamp lost in a crash costs one stale hint.

    Args:
        conn: a connection in a transaction.
        lane: the lane.
        kind: the kind.
        limit: most hints.
        rehint_s: hint again at a job still queued this many seconds after its last hint.
        mark: the lane and kind's low-water mark in this process.
    """
    start = mark.start()
    begun = time.monotonic()
    rows = conn.execute(
        _STAMP,
        {"lane": lane, "kind": kind, "limit": limit, "rehint_s": rehint_s, "mark": start},
        prepare=True,
    ).fetchall()
    lane_turn, first = (rows[0][2], rows[0][1]) if rows else (None, None)
    mark.seen(start, lane_turn, first, time.monotonic() - begun)
    return [row[0] for row in rows]
