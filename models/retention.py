"""Retention: deletes expired results, then old finished jobs with everything that belongs to them."""

from __future__ import annotations

from typing import Any

import psycopg

from models.sql import QUERIES

Connection = psycopg.Connection[Any]


def prune_results(conn: Connection, limit: int = 5000) -> int:
    """Delete results past their time to live; returns how many.

    A result that a flow may still read is kept until the flow has ended.
    """
    return sum(
        conn.execute(
            f"""DELETE FROM vestry.{privacy}_results WHERE job_id IN (
                  SELECT r.job_id FROM vestry.{privacy}_results r
                  WHERE r.expires_at < (SELECT vestry.clock())
                    AND NOT EXISTS (SELECT FROM vestry.jobs c
                                    JOIN vestry.jobs f ON f.root_id = c.root_id
                                    WHERE c.id = r.job_id AND c.root_id IS NOT NULL
                                      AND f.finished_at IS NULL)
                  ORDER BY r.expires_at LIMIT %s)""",  # noqa: S608
            [limit],
        ).rowcount
        for privacy in ("private", "shareable")
    )


def prune_jobs(conn: Connection, keep_s: float, limit: int = 1000) -> int:
    """Delete jobs that ended long ago, with payloads, blobs, receipts and idempotency keys.

    Args:
        conn: a connection in a transaction.
        keep_s: seconds a finished job is kept.
        limit: most jobs in one call.

    Returns:
        How many jobs were deleted.
    """
    row = conn.execute(QUERIES["prune_jobs"], {"keep_s": keep_s, "limit": limit}).fetchone()
    assert row is not None  # noqa: S101 - count always has a row
    return int(row[0])
