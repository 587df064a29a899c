"""Erasure of an owner: deletes key, rows, files, vectors and results, and keeps a tombstone.

The SQL of `vestry.forget_owner_v1` explains the order. Each step commits by itself and may
be repeated, so an interrupted call is repeated.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

import psycopg

from vestry.errors import InvalidInput, Unavailable, UnknownOwner

Connection = psycopg.Connection[Any]

PAGE: Final = 500
"""Most jobs, or documents, in one transaction."""


@dataclass(slots=True)
class ErasureReport:
    """Counts of deleted and kept rows of an erasure.

    Attributes:
        owner: the owner.
        forgotten_at: time of the tombstone, after which nothing is stored for the owner.
        gone: number of deleted keys, documents, chunks, vectors, payloads, results, files and
            idempotency_keys.
        cancelled: jobs that were waiting, queued or running.
        kept_jobs: job records without content, which stay until they are pruned.
    """

    owner: str
    forgotten_at: dt.datetime
    gone: dict[str, int] = field(default_factory=dict)
    cancelled: int = 0
    kept_jobs: int = 0


def forget(conn: Connection, owner: str, *, timeout_s: float = 30.0) -> ErasureReport:
    """Delete all content of an owner permanently.

    Args:
        conn: an operator's connection, under autocommit.
        owner: the owner.
        timeout_s: longest wait for producers' open transactions that store content of the owner.

    Raises:
        UnknownOwner: nothing was ever stored for this owner.
        Unavailable: a producer's transaction stayed open. The tombstone is set; call again.
    """
    row = conn.execute("SELECT * FROM vestry.forget_owner_v1(%s)", [owner]).fetchone()
    if row is None or row[0] is None:
        raise UnknownOwner("Nothing was ever stored for this owner; check its name.")
    erased = ErasureReport(owner, row[0], {"keys": row[1]})
    erased.gone["keys"] += _await_enqueues(conn, owner, timeout_s)
    erased.cancelled = _cancel(conn, owner)
    _delete(conn, erased)
    kept = conn.execute("SELECT count(*) FROM vestry.jobs WHERE owner = %s", [owner]).fetchone()
    erased.kept_jobs = kept[0] if kept else 0
    return erased


def _await_enqueues(conn: Connection, owner: str, timeout_s: float) -> int:
    try:
        with conn.transaction():
            conn.execute(
                "SELECT set_config('lock_timeout', %s, true)",
                [f"{max(1, int(timeout_s * 1000))}ms"],
            )
            row = conn.execute("SELECT vestry.await_enqueues_v1(%s)", [owner]).fetchone()
    except psycopg.errors.LockNotAvailable:
        raise Unavailable(
            "A producer's open transaction stores content of this owner. New content is refused from "
            "now on. Run the command again after that transaction has ended."
        ) from None
    return int(row[0]) if row else 0


def _cancel(conn: Connection, owner: str) -> int:
    """Cancel jobs until none is unfinished: jobs of a flow may be released meanwhile."""
    count = 0
    while ids := [
        row[0]
        for row in conn.execute(
            """SELECT id FROM vestry.jobs
               WHERE owner = %s AND state IN ('waiting', 'queued', 'running') ORDER BY id""",
            [owner],
        )
    ]:
        for start in range(0, len(ids), PAGE):
            count += _cancel_page(conn, ids[start : start + PAGE])
    return count


def _cancel_page(conn: Connection, ids: list[UUID]) -> int:
    rows = conn.execute("SELECT state FROM vestry.cancel_jobs_v1(%b::uuid[])", [ids]).fetchall()
    return sum(state == "cancelled" for (state,) in rows)


def _delete(conn: Connection, erased: ErasureReport) -> None:
    more = True
    while more:
        rows = conn.execute(
            "SELECT what, gone, more FROM vestry.forget_content_v1(%s, %s)", [erased.owner, PAGE]
        ).fetchall()
        more = any(row[2] for row in rows)
        for content, gone, _ in rows:
            name = "files" if content == "blobs" else content
            erased.gone[name] = erased.gone.get(name, 0) + gone


def backups_until(days: float | None, forgotten_at: dt.datetime) -> dt.datetime | None:
    """When the last backup that may hold content of the owner is deleted; None if unknown.

    Raises:
        InvalidInput: the days are negative.
    """
    if days is None:
        return None
    if days < 0:
        raise InvalidInput("backup-days", "must not be negative")
    return forgotten_at + dt.timedelta(days=days)
