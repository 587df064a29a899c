"""Leases: claiming a batch, keeping it, and knowing what is still ours.

A lease's random id is the fencing token. Lock order everywhere: leases by id, jobs by id,
then documents by owner, source and external hash.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import namedtuple_row
from psycopg.types.numeric import Int8

from models.claim_query import LowWaterMark, ready_jobs_sql
from vestry.lanes import Kind

Connection = psycopg.Connection[Any]


@dataclass(frozen=True, slots=True)
class ClaimedJob:
    """A job's row as the claim left it."""

    id: UUID
    kind: Kind
    task: str | None
    model: str | None
    owner: str
    latency: str
    cost: int
    attempt: int
    max_attempts: int
    keep_payload: bool
    result_ttl_s: int
    created_at: datetime
    started_at: datetime
    quality: str = "adequate"
    tier: str | None = None
    parent_id: UUID | None = None
    root_id: UUID | None = None
    tried_models: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Lease:
    """A fenced, expiring claim on a batch. `id` is the token.

    `more` says that other jobs of the kinds asked for stood in line beside the batch.
    """

    id: UUID
    lane: str
    exclusive: bool
    jobs: tuple[ClaimedJob, ...]
    more: bool = False


@dataclass(frozen=True, slots=True)
class LeasePolicy:
    """How long a claim lasts, in seconds, and who holds it."""

    worker: str
    privacy: str
    lease_s: float
    max_run_s: float


UNLIMITED_COST = 1_000_000
"""Cost of a batch for which no budget was given."""

_BY_ID = "j.state || '' = 'queued'"
"""Queued, said so that no partial index answers to it: a row named by its id is fetched by its id. With
statistics from before the backlog the planner otherwise walks the whole line to filter for that id
(100,000 jobs: 21 to 49 ms)."""

# The first in line of each kind asked for, with the kind's mark and budget.
_HEADS = """
  SELECT f.id, f.kind, f.model, f.start_tag, k.mark, k.budget
  FROM unnest(%(kinds)s::text[], %(marks)s::bigint[], %(budgets)s::bigint[]) k(kind, mark, budget),
  LATERAL (
    SELECT j.id, j.kind, j.model, j.start_tag FROM vestry.jobs j
    WHERE %(hint)s::uuid IS NULL AND j.lane = %(lane)s AND j.kind = k.kind
      AND j.state = 'queued' AND j.start_tag IS NOT NULL AND {quarantined} j.quarantined
      AND j.start_tag >= k.mark
    ORDER BY j.start_tag, j.id LIMIT 1) f"""

# The first of those that nobody is taking just now. With one kind there is no choice.
_FREE = """
  SELECT f.id FROM heads f JOIN vestry.jobs j ON j.id = f.id
  WHERE cardinality(%(kinds)s::text[]) > 1 AND {by_id}
  ORDER BY f.start_tag, f.id LIMIT 1 FOR UPDATE OF j SKIP LOCKED"""

# A kind and model for the batch: the hinted job's, else the free one's, else those of the first
# (others of its kind may stand behind it).
_HEAD = """
  SELECT h.id, h.kind, h.model, h.mark, h.budget FROM (
    SELECT j.id, j.kind, j.model, k.mark, k.budget FROM vestry.jobs j
    JOIN unnest(%(kinds)s::text[], %(marks)s::bigint[], %(budgets)s::bigint[])
      k(kind, mark, budget) ON k.kind = j.kind
    WHERE j.id = %(hint)s AND j.lane = %(lane)s AND {by_id} AND j.start_tag IS NOT NULL
      AND NOT j.quarantined
    UNION ALL
    (SELECT f.id, f.kind, f.model, f.mark, f.budget FROM heads f
     ORDER BY f.id NOT IN (SELECT id FROM free), f.start_tag, f.id LIMIT 1)
  ) h LIMIT 1"""


def _claim_sql(*, quarantined: bool) -> str:
    rest = (
        ready_jobs_sql(quarantined=quarantined)
        .replace("%(kind)s", "(SELECT kind FROM head)")
        .replace("%(model)s", "(SELECT model FROM head)")
        .replace("%(mark)s", "(SELECT mark FROM head)")
    )
    which = "" if quarantined else "NOT"
    return f"""
    WITH heads AS MATERIALIZED ({_HEADS.format(quarantined=which)}),
    free AS MATERIALIZED ({_FREE.format(by_id=_BY_ID)}),
    head AS MATERIALIZED ({_HEAD.format(by_id=_BY_ID)}),
    hinted AS MATERIALIZED (
      SELECT j.id, j.start_tag, j.cost FROM vestry.jobs j JOIN head ON head.id = j.id
      WHERE %(hint)s::uuid IS NOT NULL AND {_BY_ID} AND j.start_tag IS NOT NULL
        AND NOT j.quarantined
        AND EXISTS (SELECT FROM vestry.lanes l WHERE l.lane = %(lane)s AND l.paused_at IS NULL)
        AND (j.deadline IS NULL OR j.deadline > vestry.clock())
      FOR UPDATE OF j SKIP LOCKED),
    line AS MATERIALIZED ({rest}),
    chosen AS (
      SELECT u.id, u.start_tag,
             sum(u.cost) OVER (ORDER BY u.rank, u.start_tag, u.id) - u.cost AS before,
             row_number() OVER (ORDER BY u.rank, u.start_tag, u.id) AS place
      FROM (SELECT id, start_tag, cost, 0 AS rank FROM hinted
            UNION ALL
            SELECT id, start_tag, cost, 1 FROM line
            WHERE %(hint)s::uuid IS NULL
               OR (EXISTS (SELECT FROM hinted) AND id NOT IN (SELECT id FROM hinted))) u),
    batch AS MATERIALIZED (
      SELECT id, start_tag FROM chosen WHERE before < (SELECT budget FROM head) AND place <= %(limit)s),
    now AS MATERIALIZED (SELECT vestry.clock() AS t),
    lease AS (
      INSERT INTO vestry.leases (lane, privacy, worker, exclusive, created_at, expires_at, max_until)
      SELECT %(lane)s, %(privacy)s, %(worker)s, %(exclusive)s, now.t,
             now.t + make_interval(secs => least(%(lease_s)s, %(max_run_s)s)),
             now.t + make_interval(secs => %(max_run_s)s)
      FROM now WHERE EXISTS (SELECT FROM batch)
      RETURNING id),
    claimed AS (
      UPDATE vestry.jobs j
      SET state = 'running', start_tag = NULL, lease_id = lease.id, attempt = j.attempt + 1,
          started_at = now.t
      FROM batch, lease, now WHERE j.id = batch.id AND {_BY_ID}
      RETURNING j.*),
    moved AS (
      UPDATE vestry.lanes l SET virtual_time = (SELECT max(start_tag) FROM batch)
      WHERE l.lane = (SELECT x.lane FROM vestry.lanes x
                      WHERE x.lane = %(lane)s AND x.virtual_time < (SELECT max(start_tag) FROM batch)
                      FOR UPDATE SKIP LOCKED))
    SELECT c.lease_id, c.id, c.kind, c.task, c.model, c.owner, c.latency, c.cost, c.attempt,
           c.max_attempts, c.keep_payload, c.result_ttl_s, c.created_at, c.started_at,
           c.quality, c.tier, c.parent_id, c.root_id, c.tried_models,
           (SELECT virtual_time FROM vestry.lanes WHERE lane = %(lane)s) AS virtual_time,
           (SELECT min(start_tag) FROM batch) AS first_tag,
           ARRAY(SELECT h.start_tag FROM unnest(%(kinds)s::text[]) WITH ORDINALITY k(kind, place)
                 LEFT JOIN heads h ON h.kind = k.kind ORDER BY k.place) AS head_tags,
           EXISTS (SELECT FROM heads WHERE kind <> (SELECT kind FROM head))
           OR (SELECT true FROM vestry.jobs j
               WHERE j.lane = %(lane)s AND j.kind = (SELECT kind FROM head)
                 AND j.state = 'queued' AND j.start_tag IS NOT NULL AND {which} j.quarantined
                 AND j.start_tag >= (SELECT mark FROM head) AND j.id NOT IN (SELECT id FROM batch)
               ORDER BY j.start_tag, j.id LIMIT 1) IS NOT NULL AS more
    FROM claimed c ORDER BY c.id"""  # noqa: S608 - composed of this module's own literals


def _minify_sql(query: str) -> str:
    """Without blanks it can do without: psycopg parses a text past 4096 characters for every call."""
    return re.sub(r"\s*([(,])\s*|\s+(?=\))", r"\1", " ".join(query.split()))


CLAIM = _minify_sql(_claim_sql(quarantined=False))
CLAIM_QUARANTINED = _minify_sql(_claim_sql(quarantined=True))


def claim(
    conn: Connection,
    terms: LeasePolicy,
    lane: str,
    kinds: Sequence[str],
    *,
    hint: UUID | None = None,
    limit: int = 256,
    budgets: Mapping[str, int] | None = None,
    marks: Mapping[str, LowWaterMark] | None = None,
    quarantined: bool = False,
) -> Lease | None:
    """Take a batch of one kind and model under a fresh token, in the caller's transaction.

    One statement however many kinds there are: the first in line among them says which it is.

    The caller commits synchronously before it runs anything: an asynchronous claim lost in a crash
    of Postgres would let the same jobs be handed out again while they run.

    Args:
        conn: a connection in a transaction.
        terms: whose lease it will be and how long it lasts.
        lane: from which lane.
        kinds: kinds this process has slots for.
        hint: a job that must be the first of the batch; if it cannot be had nothing is taken.
        limit: most jobs.
        budgets: largest cost (sum of jobs.cost) by kind; the first job is taken whatever its size.
        marks: the lane's low-water marks in this process, by kind.
        quarantined: take one quarantined job under an exclusive lease; the process must hold
            nothing else.

    Returns:
        The lease, or None when nothing was runnable.
    """
    marks = marks or {}
    known = [marks.get(kind) or LowWaterMark() for kind in kinds]
    starts = [mark.start() for mark in known]
    begun = time.monotonic()
    with conn.cursor(row_factory=namedtuple_row) as cursor:
        rows: list[Any] = cursor.execute(
            CLAIM_QUARANTINED if quarantined else CLAIM,
            {
                "lane": lane,
                "kinds": list(kinds),
                "hint": hint,
                # Of one type whatever their size: else the statement is planned for each.
                "marks": [Int8(start) for start in starts],
                "limit": 1 if quarantined else limit,
                "budgets": [Int8((budgets or {}).get(kind, UNLIMITED_COST)) for kind in kinds],
                "privacy": terms.privacy,
                "worker": terms.worker,
                "exclusive": quarantined,
                "lease_s": terms.lease_s,
                "max_run_s": terms.max_run_s,
            },
            prepare=True,
            binary=True,
        ).fetchall()
    if hint is None:
        took_s = time.monotonic() - begun
        virtual_time, heads = (rows[0].virtual_time, rows[0].head_tags) if rows else (None, None)
        for place, (kind, mark, start) in enumerate(zip(kinds, known, starts, strict=True)):
            taken = bool(rows) and kind == rows[0].kind
            first = rows[0].first_tag if taken else heads and heads[place]
            mark.update(start, virtual_time, first, took_s)
    if not rows:
        return None
    return Lease(
        id=rows[0].lease_id,
        lane=lane,
        exclusive=quarantined,
        jobs=tuple(ClaimedJob(*row[1:19]) for row in rows),
        more=rows[0].more,
    )


def extend(conn: Connection, tokens: Sequence[UUID], lease_s: float) -> frozenset[UUID]:
    """Extend leases, never past their `max_until`; returns the jobs they still hold.

    One that ran out but was not taken back is extended, too: after an outage that was longer than a
    lease this is how a process says that it is still there, before the reconciler's grace is over.

    Args:
        conn: a connection; the statement commits by itself under autocommit.
        tokens: the process's leases.
        lease_s: seconds from now.
    """
    conn.execute(
        """UPDATE vestry.leases l
           SET expires_at = least(l.max_until, now.t + make_interval(secs => %(lease_s)s))
           FROM (SELECT vestry.clock() AS t OFFSET 0) now,
                (SELECT id FROM vestry.leases WHERE id = ANY (%(tokens)s) ORDER BY id FOR UPDATE) mine
           WHERE l.id = mine.id""",
        {"lease_s": lease_s, "tokens": list(tokens)},
    )
    return frozenset(
        row[0]
        for row in conn.execute(
            "SELECT id FROM vestry.jobs WHERE lease_id = ANY (%s)", [list(tokens)]
        )
    )
