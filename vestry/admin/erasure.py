"""Forgetting an owner: key, rows, files, vectors and results go, a tombstone stays.

migrations/sql/0001_initial/erasure.sql explains the order. Each step commits by itself and may be
repeated, so that an interrupted call is made again.
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
"""Jobs, or documents, in one transaction."""


@dataclass(slots=True)
class ErasureReport:
    """What went and what did not.

    Attributes:
        owner: who.
        forgotten_at: the tombstone's time; nothing is stored for the owner after it.
        gone: how many went, by what: keys, documents, chunks, vectors, payloads, results, files,
            idempotency_keys.
        cancelled: jobs that were waiting, queued or running.
        kept_jobs: job records without content that stay until they are pruned.
    """

    owner: str
    forgotten_at: dt.datetime
    gone: dict[str, int] = field(default_factory=dict)
    cancelled: int = 0
    kept_jobs: int = 0


def forget(conn: Connection, owner: str, *, timeout_s: float = 30.0) -> ErasureReport:
    """Forget an owner for good.

    Args:
        conn: an operator's connection, under autocommit.
        owner: who.
        timeout_s: how long producers' open transactions that store something for the owner are
            waited for.

    Raises:
        UnknownOwner: nothing was ever stored for such an owner.
        Unavailable: a producer's transaction stayed open. The tombstone stands; call again.
    """
    row = conn.execute("SELECT * FROM vestry.forget_owner_v1(%s)", [owner]).fetchone()
    if row is None or row[0] is None:
        raise UnknownOwner("nothing was ever stored for this owner")
    done = ErasureReport(owner, row[0], {"keys": row[1]})
    done.gone["keys"] += _await_enqueues(conn, owner, timeout_s)
    done.cancelled = _cancel(conn, owner)
    _delete(conn, done)
    kept = conn.execute("SELECT count(*) FROM vestry.jobs WHERE owner = %s", [owner]).fetchone()
    done.kept_jobs = kept[0] if kept else 0
    return done


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
            "A producer's open transaction stores something for this owner. Nothing new is taken for "
            "them any more; run the command again when that transaction is over."
        ) from None
    return int(row[0]) if row else 0


def _cancel(conn: Connection, owner: str) -> int:
    """Cancel all that is not finished. There is nothing new, but a flow's jobs that come free."""
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


def _delete(conn: Connection, done: ErasureReport) -> None:
    more = True
    while more:
        rows = conn.execute(
            "SELECT what, gone, more FROM vestry.forget_content_v1(%s, %s)", [done.owner, PAGE]
        ).fetchall()
        more = any(row[2] for row in rows)
        for what, gone, _ in rows:
            name = "files" if what == "blobs" else what
            done.gone[name] = done.gone.get(name, 0) + gone


def backups_until(days: float | None, forgotten_at: dt.datetime) -> dt.datetime | None:
    """When the last backup that may hold something of the owner is gone, if it is known.

    Raises:
        InvalidInput: the days are negative.
    """
    if days is None:
        return None
    if days < 0:
        raise InvalidInput("backup-days", "must not be negative")
    return forgotten_at + dt.timedelta(days=days)
