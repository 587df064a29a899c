"""Pruning of what has had its time: results, then whole jobs and all that hangs on them."""

from __future__ import annotations

from typing import Any

import psycopg

Connection = psycopg.Connection[Any]


def prune_results(conn: Connection, limit: int = 5000) -> int:
    """Delete results past their time to live; returns how many.

    What a flow still reads stays until the flow has ended.
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
        limit: most jobs in one go.

    Returns:
        How many jobs went.
    """
    row = conn.execute(
        """WITH old AS MATERIALIZED (
             SELECT id FROM vestry.jobs j
             WHERE finished_at < (SELECT vestry.clock()) - make_interval(secs => %s)
               AND (root_id IS NULL OR NOT EXISTS (
                 SELECT FROM vestry.jobs f WHERE f.root_id = j.root_id AND f.finished_at IS NULL))
             ORDER BY finished_at LIMIT %s FOR UPDATE SKIP LOCKED),
           a AS (DELETE FROM vestry.private_payloads t USING old WHERE t.job_id = old.id),
           b AS (DELETE FROM vestry.shareable_payloads t USING old WHERE t.job_id = old.id),
           c AS (DELETE FROM vestry.private_blobs t USING old WHERE t.job_id = old.id),
           d AS (DELETE FROM vestry.shareable_blobs t USING old WHERE t.job_id = old.id),
           e AS (DELETE FROM vestry.private_results t USING old WHERE t.job_id = old.id),
           f AS (DELETE FROM vestry.shareable_results t USING old WHERE t.job_id = old.id),
           g AS (DELETE FROM vestry.receipts t USING old WHERE t.job_id = old.id),
           h AS (DELETE FROM vestry.job_documents t USING old WHERE t.job_id = old.id),
           i AS (DELETE FROM vestry.idempotency_keys t USING old WHERE t.job_id = old.id),
           gone AS (DELETE FROM vestry.jobs t USING old WHERE t.id = old.id RETURNING 1)
           SELECT count(*) FROM gone""",
        [keep_s, limit],
    ).fetchone()
    assert row is not None  # noqa: S101 - count always has a row
    return int(row[0])
