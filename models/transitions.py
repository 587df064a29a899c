"""Changes of a job's state: with `claims.claim`, the only ones in Python.

Enqueue, cancel, replay and flows are SQL functions.

| from | to | here |
|---|---|---|
| queued | running | `claims.claim` |
| running | succeeded, dead, superseded, queued (retry) | `settle`, when a worker finishes |
| running | queued (attempt not counted) | `release`, `reroute` |
| running | queued (quarantined), dead | `rescue` |
| waiting, queued, running | expired | `expire` |
| waiting, queued, running | cancelled | SQL `cancel_jobs_v1` |

Every transition out of `running` names the token of the claim, so that a worker which lost its lease
changes nothing. Time is Postgres's. Lock order: leases by id, jobs by id, documents by owner, source
and external hash.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb

from models.sql import QUERIES
from models.states import State
from vestry.db.operations import column
from vestry.lanes import Pool

Connection = psycopg.Connection[Any]

MAX_EXCLUSIVE_CRASHES: Final = 2
"""A job under whose exclusive lease the process crashed twice is dead: nothing else ran there."""
LOST_EXCLUSIVE: Final = "the process ended or froze in an exclusive run"
"""Receipt reason of a crash that counts, unless the process is still running (`revert_crash`)."""
LOST_UNCONFIRMED: Final = "the claim was unconfirmed, and nothing ran"
"""Receipt reason that replaces `LOST_EXCLUSIVE` when an unconfirmed claim is released."""


@dataclass(frozen=True, slots=True)
class Settlement:
    """A job's state at the end of an attempt.

    Attributes:
        code: stored unsealed like `message`, so both are content-free.
        delay_s: until the next attempt; for a retry only.
        uncounted: the attempt is not counted, since the job did not cause its end.
        degraded: another model than the intended one served it.
    """

    job_id: UUID
    state: State
    code: str | None = None
    message: str | None = None
    delay_s: float = 0.0
    uncounted: bool = False
    degraded: bool = False


def lock_held(
    conn: Connection,
    token: UUID,
    job_ids: Sequence[UUID],
    *,
    owners: Iterable[str],
    flows: bool = False,
) -> frozenset[UUID]:
    """Lock the lease and those of the jobs that it still holds, in that order, by id.

    Args:
        conn: a connection in a transaction, for the length of which the locks last.
        token: the lease.
        job_ids: jobs claimed under it.
        owners: the jobs' owners.
        flows: some of the jobs belong to a flow, whose root is locked before its other jobs.

    Returns:
        The jobs whose attempt may still finish. The others were cancelled, expired, rescued or
        released, or their owner is being forgotten; only their receipt may be written.
    """
    if flows:
        conn.execute("SELECT vestry.lock_roots_v1(%s::uuid[])", [list(job_ids)])
    # The lease is locked before the first job is read: its count is a condition of the scan.
    rows = conn.execute(
        """WITH lease AS MATERIALIZED (SELECT FROM vestry.leases WHERE id = %(token)s FOR UPDATE)
           SELECT id FROM vestry.jobs
           WHERE (SELECT count(*) FROM lease) >= 0
             AND id = ANY (%(ids)b) AND lease_id = %(token)s AND state = 'running'
             AND owner = ANY ((SELECT vestry.active_owners_v1(%(owners)s::text[]))::text[])
           ORDER BY id FOR UPDATE""",
        {"ids": column(job_ids), "token": token, "owners": sorted(set(owners))},
        prepare=True,
        binary=True,
    )
    return frozenset(row[0] for row in rows)


def settle(conn: Connection, token: UUID, settlements: Sequence[Settlement]) -> None:
    """Set the states of locked jobs at the end of their attempts; drop the lease once it is empty.

    The commit notifies callers that wait for interactive jobs.

    Args:
        conn: the transaction in which `lock_held` returned these jobs.
        token: their lease.
        settlements: one per job.
    """
    if not settlements:
        drop_if_empty(conn, token)
        return
    conn.execute(
        QUERIES["settle"],
        {
            "ids": column(s.job_id for s in settlements),
            "states": column(s.state.value for s in settlements),
            "codes": column(s.code for s in settlements),
            "messages": column(s.message for s in settlements),
            "delays": column(s.delay_s for s in settlements),
            "uncounted": column(s.uncounted for s in settlements),
            "degraded": column(s.degraded for s in settlements),
            "token": token,
        },
        prepare=True,
    )


def revert_crash(conn: Connection, token: UUID, job_ids: Sequence[UUID]) -> int:
    """Uncount the crash of jobs under a lost exclusive lease whose process is still running.

    The process was frozen, disconnected or starved, and did not end. A job that reached the longest
    permitted run keeps its crash. Called before the attempt's own receipt replaces the `lost` one.

    Args:
        conn: a connection in a transaction.
        token: the lease that was lost.
        job_ids: its jobs.

    Returns:
        How many crashes were uncounted.
    """
    cursor = conn.execute(
        """UPDATE vestry.jobs j SET crashes = j.crashes - 1
           FROM vestry.receipts r
           WHERE j.id = ANY (%s) AND j.finished_at IS NULL AND j.crashes > 0
             AND r.job_id = j.id AND r.lease_id = %s AND r.outcome = 'lost' AND r.reason = %s""",
        [list(job_ids), token, LOST_EXCLUSIVE],
    )
    return cursor.rowcount


def drop_if_empty(conn: Connection, token: UUID) -> None:
    """Delete a lease that holds no job any more."""
    conn.execute(
        """DELETE FROM vestry.leases
           WHERE id = %s AND NOT EXISTS (SELECT FROM vestry.jobs WHERE lease_id = %s)""",
        [token, token],
        prepare=True,
    )


def release(conn: Connection, token: UUID) -> int:
    """Return the jobs of a lease to the front of their queue; the attempt is not counted.

    For drain, outages and unconfirmed claims, which the jobs did not cause.

    Args:
        conn: a connection in a transaction.
        token: the lease.

    Returns:
        How many jobs were released.
    """
    conn.execute("SELECT 1 FROM vestry.leases WHERE id = %s FOR UPDATE", [token])
    cursor = conn.execute(
        """WITH held AS MATERIALIZED (
             SELECT id FROM vestry.jobs
             WHERE lease_id = %(token)s AND state = 'running'
             ORDER BY id FOR UPDATE)
           UPDATE vestry.jobs j
           SET state = 'queued', lease_id = NULL, attempt = j.attempt - 1, hinted_at = NULL,
               start_tag = (SELECT l.virtual_time FROM vestry.lanes l WHERE l.lane = j.lane)
           FROM held WHERE j.id = held.id""",
        {"token": token},
    )
    drop_if_empty(conn, token)
    return cursor.rowcount


def release_unconfirmed(
    conn: Connection, token: UUID, job_ids: Sequence[UUID], *, exclusive: bool
) -> bool:
    """Undo an unconfirmed claim: one whose COMMIT result is unknown, so that nothing ran. Idempotent.

    Args:
        conn: a connection in a transaction.
        token: the lease, which may never have been committed.
        job_ids: its jobs.
        exclusive: the lease is exclusive; a crash that the reconciler counted is uncounted.

    Returns:
        Whether there was anything to undo.
    """
    if release(conn, token):
        return True
    if not exclusive:
        return False
    ids = list(job_ids)
    conn.execute("SELECT FROM vestry.jobs WHERE id = ANY (%s) ORDER BY id FOR UPDATE", [ids])
    reverted = revert_crash(conn, token, ids)
    conn.execute(
        """UPDATE vestry.receipts SET reason = %s
           WHERE job_id = ANY (%s) AND lease_id = %s AND outcome = 'lost' AND reason = %s""",
        [LOST_UNCONFIRMED, ids, token, LOST_EXCLUSIVE],
    )
    return reverted > 0


def reroute(
    conn: Connection, token: UUID, pools: Mapping[UUID, tuple[Pool, Mapping[str, str]]]
) -> None:
    """Move locked jobs to the front of another pool's lane; the attempt is not counted.

    Args:
        conn: the transaction in which `lock_held` returned these jobs.
        token: their lease; `settle` drops it.
        pools: by job, the pool and the models that its attempt tried, each with the reason why it
            did not serve.
    """
    if pools:
        conn.execute(
            "SELECT vestry.reroute_jobs_v1(%s, %s::uuid[], %s::text[], %s::jsonb[])",
            [
                token,
                list(pools),
                [pool.value for pool, _ in pools.values()],
                [Jsonb(tried) if tried else None for _, tried in pools.values()],
            ],
        )


@dataclass(frozen=True, slots=True)
class Rescued:
    """Numbers of jobs that were taken from expired leases."""

    quarantined: int
    dead: int


def rescue(conn: Connection, limit: int = 100) -> Rescued:
    """Quarantine the jobs of expired leases; a job is dead after two crashes in exclusive runs.

    The attempt of a batch's jobs is not counted: which of them ended the process is unknown. Each is
    then run under an exclusive lease. A lease that expired at its `max_until` means a job that does not
    end; any other means a process that ended or froze. A job whose crashes were reverted each
    time is dead once it is out of attempts. A job that an open transaction is cancelling stays under
    its lease until that transaction ends, and does not block the others.

    Args:
        conn: a connection in a transaction.
        limit: most leases in one call.
    """
    row = conn.execute(
        QUERIES["rescue"],
        {"limit": limit, "crashes": MAX_EXCLUSIVE_CRASHES, "lost_exclusive": LOST_EXCLUSIVE},
    ).fetchone()
    assert row is not None  # noqa: S101 - an aggregate always has a row
    return Rescued(quarantined=row[0], dead=row[1])


def schedule_due(conn: Connection, limit: int = 1000) -> list[str]:
    """Set start tags of queued jobs whose `run_at` has passed; returns their lanes.

    Args:
        conn: a connection in a transaction.
        limit: most jobs in one call.
    """
    rows = conn.execute(QUERIES["schedule_due"], {"limit": limit}, prepare=True).fetchall()
    return [row[0] for row in rows]


def expire(conn: Connection, limit: int = 1000) -> int:
    """End jobs whose deadline has passed, running ones included; returns how many.

    They never run again, so private payloads are deleted at once.

    Args:
        conn: a connection in a transaction.
        limit: most jobs in one call.
    """
    return len(conn.execute(QUERIES["expire"], {"limit": limit}).fetchall())
