"""What the dispatcher reads and stamps: which jobs to hint at, and that they were."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any
from uuid import UUID

import psycopg

from models.claim_query import LowWaterMark, ready_jobs_sql

Connection = psycopg.Connection[Any]

_STAMP = f"""
WITH picked AS MATERIALIZED ({ready_jobs_sql(hints=True)}),
stamped AS (
  UPDATE vestry.jobs j SET hinted_at = vestry.clock()
  FROM picked WHERE j.id = picked.id RETURNING j.id)
SELECT picked.id, picked.start_tag,
       (SELECT virtual_time FROM vestry.lanes WHERE lane = %(lane)s) AS virtual_time
FROM picked JOIN stamped USING (id) ORDER BY picked.start_tag, picked.id"""  # noqa: S608 - our own text


_WAITING = """
SELECT w.lane, w.kind
FROM (SELECT vestry.clock() AS t OFFSET 0) now,
     unnest(%(lanes)s::text[], %(kinds)s::text[], %(marks)s::bigint[], %(ages)s::float8[])
       w(lane, kind, mark, age_s)
WHERE EXISTS (SELECT FROM vestry.jobs j
              WHERE j.lane = w.lane AND j.kind = w.kind AND j.state = 'queued'
                AND j.start_tag IS NOT NULL AND NOT j.quarantined AND j.start_tag >= w.mark
                AND j.created_at <= now.t - make_interval(secs => w.age_s))"""


def lanes_with_ready_jobs(
    conn: Connection, marks: Mapping[tuple[str, str], LowWaterMark], ages_s: Mapping[str, float]
) -> frozenset[tuple[str, str]]:
    """Of (lane, kind) pairs, those with a job in line: one query for all that an idle tick asks.

    Args:
        conn: a connection.
        marks: the pairs' low-water marks in this process.
        ages_s: by lane, how old a job must be to count; 0 where none is given.
    """
    starts = {pair: mark.start() for pair, mark in marks.items()}
    begun = time.monotonic()
    rows = conn.execute(
        _WAITING,
        {
            "lanes": [lane for lane, _ in starts],
            "kinds": [kind for _, kind in starts],
            "marks": list(starts.values()),
            "ages": [ages_s.get(lane, 0.0) for lane, _ in starts],
        },
        prepare=True,
    ).fetchall()
    found = frozenset((row[0], row[1]) for row in rows)
    took_s = time.monotonic() - begun
    for pair in starts.keys() - found:
        marks[pair].update(starts[pair], None, None, took_s)
    return found


def mark_hinted(
    conn: Connection,
    lane: str,
    kind: str,
    *,
    limit: int,
    rehint_s: float,
    mark: LowWaterMark,
    age_s: float = 0.0,
) -> list[UUID]:
    """Choose and stamp the jobs to hint at next: one statement, which may be its own transaction.

    It may be committed asynchronously: a stamp lost in a crash costs one stale hint.

    Args:
        conn: a connection.
        lane: the lane.
        kind: the kind.
        limit: most hints.
        rehint_s: hint again at a job still queued this many seconds after its last hint.
        mark: the lane and kind's low-water mark in this process.
        age_s: how many seconds ago a job must have been enqueued.
    """
    start = mark.start()
    begun = time.monotonic()
    rows = conn.execute(
        _STAMP,
        {
            "lane": lane,
            "kind": kind,
            "limit": limit,
            "rehint_s": rehint_s,
            "mark": start,
            "age_s": age_s,
        },
        prepare=True,
    ).fetchall()
    virtual_time, first = (rows[0][2], rows[0][1]) if rows else (None, None)
    mark.update(start, virtual_time, first, time.monotonic() - begun)
    return [row[0] for row in rows]
