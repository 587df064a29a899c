"""Queries of the dispatcher: which queues have ready jobs, which jobs to hint at."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

import psycopg

from models.claims import LowWaterMark, ready_jobs_sql
from models.sql import QUERIES

Connection = psycopg.Connection[Any]

_MARK_HINTED: Final = QUERIES["mark_hinted"].format(
    ready_jobs=ready_jobs_sql(
        condition="(j.hinted_at IS NULL OR j.hinted_at < now.t - make_interval(secs => %(rehint_s)s))"
        " AND j.created_at <= now.t - make_interval(secs => %(age_s)s)"
    )
)


def lanes_with_ready_jobs(
    conn: Connection, marks: Mapping[tuple[str, str], LowWaterMark], ages_s: Mapping[str, float]
) -> frozenset[tuple[str, str]]:
    """The (lane, kind) pairs that have a ready job; the only query of an idle tick.

    Args:
        conn: a connection.
        marks: the pairs' low-water marks in this process.
        ages_s: by lane, least age of a job that counts, in seconds; 0 by default.
    """
    starts = {pair: mark.start() for pair, mark in marks.items()}
    begun = time.monotonic()
    rows = conn.execute(
        QUERIES["lanes_with_ready_jobs"],
        {
            "lanes": [lane for lane, _ in starts],
            "kinds": [kind for _, kind in starts],
            "marks": list(starts.values()),
            "ages": [ages_s.get(lane, 0.0) for lane, _ in starts],
        },
        prepare=True,
    ).fetchall()
    ready = frozenset((row[0], row[1]) for row in rows)
    took_s = time.monotonic() - begun
    for pair in starts.keys() - ready:
        marks[pair].update(starts[pair], None, None, took_s)
    return ready


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
    """Choose the jobs to hint at next and set their `hinted_at`, in one statement.

    The commit may be asynchronous: a mark lost in a crash costs one stale hint.

    Args:
        conn: a connection.
        lane: the lane.
        kind: the kind.
        limit: most hints.
        rehint_s: seconds after its last hint at which a job that is still queued is hinted at again.
        mark: the low-water mark of the lane and kind in this process.
        age_s: least age of a job, in seconds since it was enqueued.
    """
    start = mark.start()
    begun = time.monotonic()
    rows = conn.execute(
        _MARK_HINTED,
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
