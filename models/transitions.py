"""The only Python that changes a job's state. Producers' enqueue and cancel are SQL functions.

| from | to | here |
|---|---|---|
| queued | running | `leases.claim` |
| running | succeeded, dead, superseded, queued (retry) | `settle`, when a worker finishes |
| running | queued (no attempt spent) | `hand_back`, `reroute` |
| running | queued (quarantined), dead | `rescue` |
| waiting, queued, running | expired | `expire` |
| waiting, queued, running | cancelled | SQL `cancel_jobs_v1` |

Every move out of `running` names the token it was claimed under, so that a worker which lost its
lease changes nothing. Time is Postgres's. Lock order: leases by
id, jobs by id, documents by owner, source and external hash.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb

from models.arrays import column
from models.states import State
from vestry.lanes import Pool

Connection = psycopg.Connection[Any]

MAX_EXCLUSIVE_CRASHES = 2
"""A job that took its process down twice while nothing else ran in it is the culprit."""
LOST_EXCLUSIVE = "the process ended or froze, running this job alone"
"""The receipt's reason where that counts as a crash, unless the process comes back (`exonerate`)."""


@dataclass(frozen=True, slots=True)
class Settlement:
    """Where one job goes at the end of an attempt.

    `delay_s` counts for a retry only. `code` and `message` are stored in the clear: content-free.
    """

    job_id: UUID
    state: State
    code: str | None = None
    message: str | None = None
    delay_s: float = 0.0
    uncounted: bool = False
    """The attempt is given back: nobody's fault."""
    degraded: bool = False
    """Another model than the intended one served it."""


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
        conn: a connection in a transaction; the locks last as long as it.
        token: the lease.
        job_ids: jobs claimed under it.
        owners: whose they are.
        flows: some of them belong to a flow, whose root is locked before anything else of it.

    Returns:
        The jobs whose attempt may still finish. The others were cancelled, expired, rescued or
        handed back, or their owner is being forgotten; nothing may be written for them but their
        receipt.
    """
    if flows:
        conn.execute("SELECT vestry.lock_roots_v1(%s::uuid[])", [list(job_ids)])
    # The lease is locked before the first job is looked for: its count is a condition of the scan.
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
    """Move locked jobs to where their attempt leaves them, and drop the lease once it is empty.

    Who waits for an interactive job hears of its end, when the transaction commits.

    Args:
        conn: the transaction in which `lock_held` returned these jobs.
        token: their lease.
        settlements: one a job.
    """
    if not settlements:
        drop_if_empty(conn, token)
        return
    conn.execute(
        """WITH moved AS (
             UPDATE vestry.jobs j
             SET state = s.state, lease_id = NULL, error_code = s.code, error_message = s.message,
                 quarantined = j.quarantined AND s.state = 'queued',
                 attempt = j.attempt - s.uncounted::int, degraded = s.degraded,
                 tried_models = NULL,
                 run_at = CASE WHEN s.state = 'queued'
                               THEN now.t + make_interval(secs => s.delay_s) ELSE j.run_at END,
                 finished_at = CASE WHEN s.state = 'queued' THEN NULL ELSE now.t END
             FROM (SELECT vestry.clock() AS t OFFSET 0) now,
                  unnest(%b::uuid[], %b::text[], %b::text[], %b::text[], %b::float8[], %b::bool[],
                         %b::bool[])
                    s(id, state, code, message, delay_s, uncounted, degraded)
             WHERE j.id = s.id AND j.lease_id = %s AND j.state = 'running'
             RETURNING j.id, j.state, j.latency),
           dropped AS (
             DELETE FROM vestry.leases
             WHERE id = %s AND NOT EXISTS (SELECT FROM vestry.jobs
                                           WHERE lease_id = %s AND id NOT IN (SELECT id FROM moved)))
           SELECT pg_notify('vestry_done', id::text) FROM moved
           WHERE latency = 'interactive' AND state <> 'queued'""",
        [
            column(s.job_id for s in settlements),
            column(s.state.value for s in settlements),
            column(s.code for s in settlements),
            column(s.message for s in settlements),
            column(s.delay_s for s in settlements),
            column(s.uncounted for s in settlements),
            column(s.degraded for s in settlements),
            token,
            token,
            token,
        ],
        prepare=True,
    )


def revert_crash(conn: Connection, token: UUID, job_ids: Sequence[UUID]) -> int:
    """Take back the crash of jobs whose process was given up, running them alone, and has come back.

    It was frozen, cut off or starved, and no job of its had ended it. One that ran for as long as a job
    may is not forgiven. Called before the attempt's own receipt replaces the one that says `lost`.

    Args:
        conn: a connection in a transaction.
        token: the lease that was lost.
        job_ids: its jobs.

    Returns:
        How many crashes were taken back.
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


def release(conn: Connection, token: UUID, job_ids: Sequence[UUID] | None = None) -> int:
    """Return jobs to the front of their line with the attempt given back.

    For drain, reroute and outages: nobody's fault, so nothing is counted.

    Args:
        conn: a connection in a transaction.
        token: the lease.
        job_ids: which jobs; None for all that the lease holds.

    Returns:
        How many jobs went back.
    """
    conn.execute("SELECT 1 FROM vestry.leases WHERE id = %s FOR UPDATE", [token])
    cursor = conn.execute(
        """WITH held AS MATERIALIZED (
             SELECT id FROM vestry.jobs
             WHERE lease_id = %(token)s AND state = 'running'
               AND (%(ids)s::uuid[] IS NULL OR id = ANY (%(ids)s))
             ORDER BY id FOR UPDATE)
           UPDATE vestry.jobs j
           SET state = 'queued', lease_id = NULL, attempt = j.attempt - 1, hinted_at = NULL,
               start_tag = (SELECT l.virtual_time FROM vestry.lanes l WHERE l.lane = j.lane)
           FROM held WHERE j.id = held.id""",
        {"token": token, "ids": None if job_ids is None else list(job_ids)},
    )
    drop_if_empty(conn, token)
    return cursor.rowcount


def reroute(
    conn: Connection, token: UUID, pools: Mapping[UUID, tuple[Pool, Mapping[str, str]]]
) -> None:
    """Move locked jobs to another pool's lane, to the front of its line, with the attempt given back.

    Args:
        conn: the transaction in which `lock_held` returned these jobs.
        token: their lease; it is dropped by `settle`.
        pools: job to pool, and to the models that its attempt tried, with why they did not serve.
    """
    if pools:
        conn.execute(
            "SELECT vestry.reroute_jobs_v1(%s, %s::uuid[], %s::text[], %s::jsonb[])",
            [
                token,
                list(pools),
                [pool.value for pool, _ in pools.values()],
                [Jsonb(passed) if passed else None for _, passed in pools.values()],
            ],
        )


@dataclass(frozen=True, slots=True)
class Rescued:
    """What became of the jobs of expired leases."""

    quarantined: int
    dead: int


def rescue(conn: Connection, limit: int = 100) -> Rescued:
    """Quarantine the jobs of expired leases; a job is dead after two crashes under exclusive leases.

    A batch's jobs get their attempt back: which of them was to blame is not known. Each is then run
    by a process that holds nothing else. A lease that was renewed as long as it may be is one of a job
    that does not end; any other, of a process that did. Who was forgiven crashes, because the process
    came back each time, dies once it is out of attempts. A job that somebody's open transaction is
    cancelling stays under its lease until that has ended, and keeps no other waiting.

    Args:
        conn: a connection in a transaction.
        limit: most leases in one go.
    """
    row = conn.execute(
        """WITH now AS MATERIALIZED (SELECT vestry.clock() AS t),
           gone AS MATERIALIZED (
             SELECT l.id, l.exclusive, l.expires_at >= l.max_until AS overran
             FROM vestry.leases l, now WHERE l.expires_at < now.t
             ORDER BY l.id LIMIT %(limit)s FOR UPDATE OF l SKIP LOCKED),
           held AS MATERIALIZED (
             SELECT j.id, j.lease_id, j.privacy, j.attempt, j.started_at, gone.exclusive, gone.overran,
                    gone.exclusive AND (j.crashes + 1 >= %(crashes)s
                                    OR j.attempt >= greatest(j.max_attempts, %(crashes)s)) AS dies
             FROM vestry.jobs j JOIN gone ON gone.id = j.lease_id
             WHERE j.state = 'running' ORDER BY j.id FOR UPDATE OF j SKIP LOCKED),
           receipted AS (
             INSERT INTO vestry.receipts
               (job_id, lease_id, privacy, attempt, outcome, reason, started_at, finished_at)
             SELECT held.id, held.lease_id, held.privacy, held.attempt, 'lost',
                    CASE WHEN held.overran AND held.exclusive
                         THEN 'it ran for as long as a job may, alone'
                         WHEN held.overran THEN 'it ran for as long as a job may, in a batch'
                         WHEN held.exclusive THEN %(lost_exclusive)s
                         ELSE 'the process ended or froze, running a batch' END,
                    held.started_at, now.t
             FROM held, now ON CONFLICT DO NOTHING),
           moved AS (
             UPDATE vestry.jobs j
             SET lease_id = NULL, hinted_at = NULL,
                 state = CASE WHEN held.dies THEN 'dead' ELSE 'queued' END,
                 quarantined = NOT held.dies,
                 crashes = j.crashes + held.exclusive::int,
                 attempt = j.attempt - (NOT held.exclusive)::int,
                 start_tag = CASE WHEN NOT held.dies THEN
                          (SELECT l.virtual_time FROM vestry.lanes l WHERE l.lane = j.lane) END,
                 finished_at = CASE WHEN held.dies THEN now.t END,
                 error_code = CASE WHEN NOT held.dies THEN NULL
                                   WHEN held.overran THEN 'timed_out' ELSE 'crashed' END,
                 error_message = CASE WHEN NOT held.dies THEN NULL WHEN held.overran
                   THEN 'it ran for longer than a job may (VESTRY_MAX_RUN_S), alone and once more'
                   ELSE 'the worker process ended or froze each time it ran this job alone' END
             FROM held, now WHERE j.id = held.id
             RETURNING j.id, j.state, j.latency, j.keep_payload),
           a AS (DELETE FROM vestry.private_payloads p USING moved m
                 WHERE p.job_id = m.id AND m.state = 'dead' AND m.latency = 'interactive'
                   AND NOT m.keep_payload),
           b AS (DELETE FROM vestry.shareable_payloads p USING moved m
                 WHERE p.job_id = m.id AND m.state = 'dead' AND m.latency = 'interactive'
                   AND NOT m.keep_payload),
           dropped AS (DELETE FROM vestry.leases l USING gone WHERE l.id = gone.id
                         AND NOT EXISTS (SELECT FROM vestry.jobs j WHERE j.lease_id = l.id
                                           AND j.id NOT IN (SELECT id FROM held))),
           told AS (SELECT pg_notify('vestry_done', id::text) FROM moved
                    WHERE state = 'dead' AND latency = 'interactive')
           SELECT count(*) FILTER (WHERE state = 'queued'), count(*) FILTER (WHERE state = 'dead'),
                  (SELECT count(*) FROM told)
           FROM moved""",
        {"limit": limit, "crashes": MAX_EXCLUSIVE_CRASHES, "lost_exclusive": LOST_EXCLUSIVE},
    ).fetchone()
    assert row is not None  # noqa: S101 - an aggregate always has a row
    return Rescued(quarantined=row[0], dead=row[1])


def schedule_due(conn: Connection, limit: int = 1000) -> list[str]:
    """Give queued jobs whose run_at has passed their place in line; returns the lanes concerned.

    A retry goes to the front, a scheduled job behind its owner's others.

    Args:
        conn: a connection in a transaction.
        limit: most jobs in one go.
    """
    rows = conn.execute(
        """WITH now AS MATERIALIZED (SELECT vestry.clock() AS t),
           due AS MATERIALIZED (
             SELECT j.id, j.lane, j.owner, j.cost, j.run_at, j.attempt
             FROM vestry.jobs j, now
             WHERE j.state = 'queued' AND j.start_tag IS NULL AND j.run_at <= now.t
             ORDER BY j.run_at LIMIT %s FOR UPDATE OF j SKIP LOCKED),
           lines AS MATERIALIZED (
             SELECT g.lane, g.owner, vestry.next_start_tag_v1(g.lane, g.owner) AS behind,
                    (SELECT l.virtual_time FROM vestry.lanes l WHERE l.lane = g.lane) AS front
             FROM (SELECT DISTINCT lane, owner FROM due) g),
           placed AS (
             SELECT due.id, CASE WHEN due.attempt > 0 THEN lines.front ELSE lines.behind
                      + sum(due.cost) OVER (PARTITION BY lane, owner, due.attempt > 0
                                             ORDER BY due.run_at, due.id) - due.cost END AS start_tag
             FROM due JOIN lines USING (lane, owner)),
           moved AS (
             UPDATE vestry.jobs j SET start_tag = placed.start_tag, hinted_at = NULL
             FROM placed WHERE j.id = placed.id RETURNING j.lane)
           SELECT DISTINCT lane FROM moved""",
        [limit],
        prepare=True,
    ).fetchall()
    return [row[0] for row in rows]


def expire(conn: Connection, limit: int = 1000) -> int:
    """End jobs whose deadline has passed, running ones included; returns how many.

    They never run again, so private payloads go at once.

    Args:
        conn: a connection in a transaction.
        limit: most jobs in one go.
    """
    rows = conn.execute(
        """WITH now AS MATERIALIZED (SELECT vestry.clock() AS t),
           due AS MATERIALIZED (
             SELECT j.id FROM vestry.jobs j, now
             WHERE j.deadline IS NOT NULL AND j.finished_at IS NULL AND j.deadline <= now.t
             ORDER BY j.id LIMIT %s FOR UPDATE OF j SKIP LOCKED),
           moved AS (
             UPDATE vestry.jobs j
             SET state = 'expired', start_tag = NULL, lease_id = NULL, finished_at = now.t,
                 error_code = 'expired', error_message = 'its deadline passed first'
             FROM due, now WHERE j.id = due.id RETURNING j.id, j.latency, j.keep_payload),
           a AS (DELETE FROM vestry.private_payloads p USING moved WHERE p.job_id = moved.id),
           b AS (DELETE FROM vestry.shareable_payloads p USING moved
                 WHERE p.job_id = moved.id AND NOT moved.keep_payload)
           SELECT id, CASE WHEN latency = 'interactive' THEN pg_notify('vestry_done', id::text) END
           FROM moved""",
        [limit],
    ).fetchall()
    return len(rows)


# Undoes a claim that its worker never heard of.

LOST_UNCONFIRMED: Final = "the answer to the claim was lost, and nothing ran"
"""The reason on the receipt of an attempt that was counted as a crash, and is no more."""


def release_unconfirmed(
    conn: Connection, token: UUID, job_ids: Sequence[UUID], *, exclusive: bool
) -> bool:
    """Undo a claim that its worker never heard of: nothing of it ran. To repeat it changes nothing.

    Args:
        conn: a connection in a transaction.
        token: the lease, which may never have been committed.
        job_ids: its jobs.
        exclusive: a quarantined job's lease; a crash that the reconciler counted is reverted.

    Returns:
        Whether there was anything to undo.
    """
    if release(conn, token):
        return True
    if not exclusive:
        return False
    ids = list(job_ids)
    conn.execute("SELECT FROM vestry.jobs WHERE id = ANY (%s) ORDER BY id FOR UPDATE", [ids])
    exonerated = revert_crash(conn, token, ids)
    conn.execute(
        """UPDATE vestry.receipts SET reason = %s
           WHERE job_id = ANY (%s) AND lease_id = %s AND outcome = 'lost' AND reason = %s""",
        [LOST_UNCONFIRMED, ids, token, LOST_EXCLUSIVE],
    )
    return exonerated > 0
