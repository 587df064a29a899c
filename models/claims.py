"""Claims: choosing ready jobs, taking a batch of them under a lease, extending leases.

Jobs are ordered by `start_tag`, their position in the lane's virtual time (docs/adr/0001), so one
ordered index scan is fair to owners. The dispatcher chooses hints with the query of the claim.

A lease's random id is the fencing token. Lock order everywhere: leases by id, jobs by id, then
documents by owner, source and external hash.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import psycopg
from psycopg.rows import namedtuple_row
from psycopg.types.numeric import Int8

from models.sql import QUERIES, NativeQuery
from vestry.lanes import Kind

Connection = psycopg.Connection[Any]

PLANNER_OPTIONS: Final = (
    "-c enable_seqscan=off -c enable_bitmapscan=off -c enable_sort=off "
    "-c plan_cache_mode=force_generic_plan"
)
"""Settings of every connection that claims. The statistics of a queue are always wrong: the table was
empty when it was analysed and holds a million rows now, or the reverse. The plan must not depend on
them, so an ordered index scan, where one exists, is the only plan allowed. Planning each call anew,
Postgres's choice here, then has no advantage (a hinted claim among 100,000 jobs: 1.70 ms, against 0.93
with the plan made once)."""

UNLIMITED_COST: Final = 1_000_000
"""Cost of a batch for which no budget was given."""

BEGINNING: Final = -(2**63)
"""A low-water mark below every start tag."""
FULL_SCAN_EVERY_S: Final = 0.5
"""How long a job enqueued by a long transaction may be overlooked below the mark."""
FULL_SCAN_SHARE: Final = 20
"""A full scan that took d seconds is not repeated for 20 d: at most 5 % of the time is spent on it."""
FULL_SCAN_LATEST_S: Final = 5.0
"""Upper bound of that interval: a scan may also be slow because the process was suspended."""


@dataclass(frozen=True, slots=True)
class ClaimedJob:
    """A job's row after the claim."""

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
    """A fenced, expiring claim on a batch.

    Attributes:
        id: the fencing token.
        exclusive: its one job is quarantined; the process runs nothing else meanwhile.
        more: other jobs of the requested kinds were ready beside the batch.
    """

    id: UUID
    lane: str
    exclusive: bool
    jobs: tuple[ClaimedJob, ...]
    more: bool = False


@dataclass(frozen=True, slots=True)
class LeasePolicy:
    """A worker's name and privacy class, and how long its claims last, in seconds."""

    worker: str
    privacy: str
    lease_s: float
    max_run_s: float


@dataclass(slots=True)
class LowWaterMark:
    """Start tag from which one process scans a (lane, kind) queue. An optimisation, never shared.

    While an old snapshot is held (by a dump, or a caller's long transaction), claimed rows leave index
    entries that cannot be removed, and every scan from the beginning of the queue would read them all.

    A job enqueued after the lane's virtual time was read gets a start tag no lower than it. One
    whose transaction began earlier and commits later may be below; the regular full scan finds it.
    """

    value: int = BEGINNING
    _next: int = BEGINNING
    _full_at: float = 0.0

    def start(self) -> int:
        """Start tag from which to scan now: the mark or, at intervals, the beginning of the queue."""
        return BEGINNING if time.monotonic() >= self._full_at else self.value

    def update(
        self, start: int, virtual_time: int | None, first: int | None, took_s: float
    ) -> None:
        """Advance the mark after a scan.

        Args:
            start: the result of `start`.
            virtual_time: the lane's virtual time as the scan saw it, None if it did not read it.
            first: the lowest start tag of the scan's result, None if that was empty.
            took_s: how long the statement took, in seconds.
        """
        if start != BEGINNING:
            return
        # The mark lags one full scan behind, which tolerates transactions open for that long.
        self.value = self._next
        if virtual_time is not None:
            self._next = virtual_time if first is None else min(first, virtual_time)
        interval_s = max(FULL_SCAN_EVERY_S, FULL_SCAN_SHARE * took_s)
        self._full_at = time.monotonic() + min(FULL_SCAN_LATEST_S, interval_s)


def ready_jobs_sql(
    *,
    condition: str,
    quarantined: bool = False,
    kind: str = "%(kind)s",
    mark: str = "%(mark)s",
) -> str:
    """SQL that selects and locks `id, start_tag, cost` of up to %(limit)s ready jobs of a queue.

    Parameters of the statement: lane, kind, mark, limit, and those of `condition`.

    Args:
        condition: on a job `j`.
        quarantined: quarantined jobs instead of the others.
        kind: an expression instead of the parameter.
        mark: the same.
    """
    return QUERIES["ready_jobs"].format(
        quarantined=_is_quarantined(quarantined), kind=kind, mark=mark, condition=condition
    )


def _claim_sql(*, quarantined: bool) -> str:
    ready_jobs = ready_jobs_sql(
        quarantined=quarantined,
        kind="(SELECT kind FROM head)",
        mark="(SELECT mark FROM head)",
        condition="coalesce(j.model, '') = coalesce((SELECT model FROM head), '')",
    )
    return QUERIES["claim"].format(quarantined=_is_quarantined(quarantined), ready_jobs=ready_jobs)


def _is_quarantined(quarantined: bool) -> str:
    return "j.quarantined" if quarantined else "NOT j.quarantined"


CLAIM: Final = NativeQuery.of(_claim_sql(quarantined=False))
CLAIM_QUARANTINED: Final = NativeQuery.of(_claim_sql(quarantined=True))


def claim(
    conn: Connection,
    policy: LeasePolicy,
    lane: str,
    kinds: Sequence[str],
    *,
    hint: UUID | None = None,
    limit: int = 256,
    budgets: Mapping[str, int] | None = None,
    marks: Mapping[str, LowWaterMark] | None = None,
    quarantined: bool = False,
) -> Lease | None:
    """Claim a batch of one kind and model under a new lease, in the caller's transaction.

    One statement for any number of kinds: the lowest start tag among them decides the kind.

    The caller commits synchronously before it runs anything: if an asynchronous claim were lost in a
    crash of Postgres, the same jobs could be claimed again while they run.

    Args:
        conn: a connection in a transaction.
        policy: the worker and the lengths of its leases.
        lane: the lane to claim from.
        kinds: kinds for which this process has free slots.
        hint: a job that must be the first of the batch; if it is not ready nothing is claimed.
        limit: most jobs.
        budgets: largest cost (sum of jobs.cost) by kind; the first job is claimed whatever its cost.
        marks: the lane's low-water marks in this process, by kind.
        quarantined: claim one quarantined job under an exclusive lease; the process must run
            nothing else.

    Returns:
        The lease, or None if no job was ready.
    """
    marks = marks or {}
    kind_marks = [marks.get(kind) or LowWaterMark() for kind in kinds]
    starts = [mark.start() for mark in kind_marks]
    begun = time.monotonic()
    query = CLAIM_QUARANTINED if quarantined else CLAIM
    rows: list[Any] = query.execute(
        conn,
        {
            "lane": lane,
            "kinds": list(kinds),
            "hint": hint,
            # The driver would choose int2, int4 or int8 by value, and prepare the statement for each.
            "marks": [Int8(start) for start in starts],
            "limit": 1 if quarantined else limit,
            "budgets": [Int8((budgets or {}).get(kind, UNLIMITED_COST)) for kind in kinds],
            "privacy": policy.privacy,
            "worker": policy.worker,
            "exclusive": quarantined,
            "lease_s": policy.lease_s,
            "max_run_s": policy.max_run_s,
        },
        namedtuple_row,
    ).fetchall()
    if hint is None:
        took_s = time.monotonic() - begun
        virtual_time, heads = (rows[0].virtual_time, rows[0].head_tags) if rows else (None, None)
        for number, (kind, mark, start) in enumerate(zip(kinds, kind_marks, starts, strict=True)):
            claimed = bool(rows) and kind == rows[0].kind
            first = rows[0].first_tag if claimed else heads and heads[number]
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


def claimable_heads(
    conn: Connection, lanes: Sequence[str], kinds: Sequence[str]
) -> list[tuple[UUID]]:
    """First unlocked job, and first unlocked quarantined job, of every (lane, kind) queue.

    Low-water marks are not applied.

    Args:
        conn: an autocommit connection.
        lanes: the lanes.
        kinds: the kinds.
    """
    return conn.execute(
        QUERIES["claimable_heads"], {"lanes": list(lanes), "kinds": list(kinds)}
    ).fetchall()


def extend(conn: Connection, tokens: Sequence[UUID], lease_s: float) -> frozenset[UUID]:
    """Extend leases, never past their `max_until`; returns the jobs that they still hold.

    An expired lease that is not rescued yet is extended too: after an outage longer than a lease, a
    running process keeps its jobs if it calls this within the reconciler's grace period.

    Args:
        conn: a connection; under autocommit each statement commits.
        tokens: the process's leases.
        lease_s: seconds from now.
    """
    conn.execute(
        """UPDATE vestry.leases l
           SET expires_at = least(l.max_until, now.t + make_interval(secs => %(lease_s)s))
           FROM (SELECT vestry.clock() AS t OFFSET 0) now,
                (SELECT id FROM vestry.leases WHERE id = ANY (%(tokens)s) ORDER BY id FOR UPDATE) held
           WHERE l.id = held.id""",
        {"lease_s": lease_s, "tokens": list(tokens)},
    )
    return frozenset(
        row[0]
        for row in conn.execute(
            "SELECT id FROM vestry.jobs WHERE lease_id = ANY (%s)", [list(tokens)]
        )
    )
