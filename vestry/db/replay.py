"""Replay of finished jobs: dead or degraded ones. No I/O.

A replay is a new job that names the old one. The old payload is opened, and sealed again for the new
id, so it must still be stored; docs/guarantees.md says for how long it is.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final, LiteralString
from uuid import UUID

from vestry.crypto.envelope import PAYLOAD, OwnerKey, blob_field
from vestry.crypto.owner_keys import OwnerKeys
from vestry.db.enqueue import STORE_BLOBS
from vestry.db.job_queries import SELECT_STATUS, STATUS_COLUMNS, status_of
from vestry.db.operations import Operation, Query, row_security_owners, uuid7
from vestry.errors import InvalidInput, NotFinished, PayloadGone, UnknownJob
from vestry.failure_reasons import REASONS, Reason, codes_of, reason_of
from vestry.jobs.results import JobRef, JobStatus, State
from vestry.lanes import KINDS, LANES, Privacy

BATCH_JOBS: Final = 32
"""Most jobs replayed in one call, whose payloads are in memory together."""
LIMIT_MAX: Final = 2**31 - 1
"""Most jobs listed in one call."""

_FILTER: Final = """ FROM vestry.jobs j WHERE {state}
  AND (%s::text IS NULL OR j.kind = %s) AND (%s::text IS NULL OR j.owner = %s)
  AND (%s::text IS NULL OR j.lane = %s) AND (%s::text[] IS NULL OR j.error_code = ANY (%s))
  AND (%s::text[] IS NULL OR coalesce(j.error_code, '') <> ALL (%s))
  AND j.finished_at >= coalesce(%s::timestamptz, vestry.clock() - %s::interval, '-infinity')
  AND (%s OR NOT EXISTS (SELECT FROM vestry.jobs r WHERE r.replay_of = j.id))
  ORDER BY j.finished_at DESC, j.id DESC LIMIT %s"""
_DEAD: Final = "j.state = 'dead'"
_DEGRADED: Final = "j.state = 'succeeded' AND j.degraded"
_PAST: Final = (
    SELECT_STATUS  # noqa: S608 - our own literals
    + """, replay_of, (SELECT r.id FROM vestry.jobs r WHERE r.replay_of = jobs.id),
  EXISTS (SELECT FROM vestry.private_payloads p WHERE p.job_id = jobs.id)
    OR EXISTS (SELECT FROM vestry.shareable_payloads p WHERE p.job_id = jobs.id),
  (SELECT to_jsonb(f) FROM (
     SELECT t.reason, t.intended_model, t.served_model FROM vestry.receipts t
     WHERE t.job_id = jobs.id AND t.degraded ORDER BY t.finished_at DESC LIMIT 1) f)
  FROM vestry.jobs WHERE id = ANY (%b::uuid[])"""
)
# The jobs, and below each those that died waiting for it; `top` is the job itself.
_FAMILIES: Final = """WITH RECURSIVE family AS (
    SELECT j.id, j.id AS top, j.owner, j.privacy, j.finished_at, j.state
    FROM vestry.jobs j WHERE j.id = ANY (%b::uuid[])
    UNION
    SELECT c.id, f.top, c.owner, c.privacy, c.finished_at, c.state
    FROM vestry.jobs c JOIN family f ON c.parent_id = f.id
    WHERE f.state = 'dead' AND c.error_code = 'parent_failed' AND c.started_at IS NULL)
  SELECT id, top, owner, privacy, finished_at IS NOT NULL
  FROM family ORDER BY owner, privacy, top, id"""
_PAYLOADS: Final = {
    "private": "SELECT job_id, body FROM vestry.private_payloads WHERE job_id = ANY (%b::uuid[])",
    "shareable": "SELECT job_id, body FROM vestry.shareable_payloads WHERE job_id = ANY (%b::uuid[])",
}
_PARTS: Final = {
    "private": "SELECT job_id, name, part FROM vestry.private_blobs WHERE job_id = ANY (%b)",
    "shareable": "SELECT job_id, name, part FROM vestry.shareable_blobs WHERE job_id = ANY (%b)",
}
_PART: Final = {
    "private": "SELECT body FROM vestry.private_blobs WHERE (job_id, name, part) = (%b, %s, %b)",
    "shareable": "SELECT body FROM vestry.shareable_blobs WHERE (job_id, name, part) = (%b, %s, %b)",
}
_REPLAY: Final = """SELECT ord, job_id, status
  FROM vestry.replay_jobs_v1(%b::uuid[], %b::uuid[], %b::uuid, %b::bytea[], %b::text[])"""


@dataclass(frozen=True, slots=True)
class JobFilter:
    """A filter of dead or degraded jobs; by default all of them, up to `limit`.

    Attributes:
        kind: only this kind.
        owner: only this owner.
        lane: only jobs that ran in this lane.
        code: only this error code.
        reason: only error codes of this reason.
        since: only jobs that ended at this time or later, or within this duration before now.
        replayed: include jobs that were replayed already.
        limit: most jobs, the latest ones; 1 to LIMIT_MAX.
    """

    kind: str | None = None
    owner: str | None = None
    lane: str | None = None
    code: str | None = None
    reason: Reason | str | None = None
    since: dt.datetime | dt.timedelta | None = None
    replayed: bool = False
    limit: int = 1000

    def __post_init__(self) -> None:
        if self.kind is not None and self.kind not in KINDS:
            raise InvalidInput("kind", f"must be one of {', '.join(KINDS)}")
        if self.lane is not None and self.lane not in LANES:
            raise InvalidInput("lane", f"must be one of {', '.join(LANES)}")
        if self.reason is not None and self.reason not in set(Reason):
            raise InvalidInput("reason", f"must be one of {', '.join(Reason)}")
        if isinstance(self.since, dt.datetime) and self.since.utcoffset() is None:
            raise InvalidInput("since", "must be a datetime with a time zone")
        if not isinstance(self.limit, int) or not 1 <= self.limit <= LIMIT_MAX:
            raise InvalidInput("limit", f"must be 1 to {LIMIT_MAX}")

    def query(self, columns: LiteralString, state: LiteralString) -> Query:
        """Select columns of the jobs in a state that pass the filter."""
        codes = None if self.code is None else [self.code]
        excluded = None
        if self.reason is not None:
            of_reason = codes_of(Reason(self.reason))
            if Reason(self.reason) is Reason.OTHER:
                excluded = list(REASONS)
            else:
                codes = [code for code in of_reason if codes is None or code in codes]
        moment = self.since if isinstance(self.since, dt.datetime) else None
        age = self.since if isinstance(self.since, dt.timedelta) else None
        pairs = (self.kind, self.owner, self.lane, codes, excluded)
        return Query(
            "SELECT " + columns + _FILTER.replace("{state}", state),
            (
                *(value for value in pairs for _ in range(2)),
                moment,
                age,
                self.replayed,
                self.limit,
            ),
        )


@dataclass(frozen=True, slots=True)
class PastJob:
    """A finished job, and whether it can be replayed.

    Attributes:
        status: its final state.
        reason: the reason, if it is dead.
        replay_of: the job that it replays.
        replayed_as: the job that replays it.
        kept: its payload is still stored, so that it can be replayed.
        degraded_by: the policy's reason, if another model than the intended one served it.
        intended_model: the intended model of a degraded job.
        served_model: the model that served it.
    """

    status: JobStatus
    reason: Reason | None
    replay_of: UUID | None
    replayed_as: UUID | None
    kept: bool
    degraded_by: str | None = None
    intended_model: str | None = None
    served_model: str | None = None


def dead(job_filter: JobFilter) -> Operation[list[PastJob]]:
    """Dead jobs, the latest first; in a transaction."""
    return (yield from _listed(job_filter, _DEAD))


def degraded(job_filter: JobFilter) -> Operation[list[PastJob]]:
    """Jobs that another model than the intended one served, the latest first; in a transaction."""
    return (yield from _listed(job_filter, _DEGRADED))


def past_job(job: UUID) -> Operation[PastJob]:
    """One job; in a transaction. Raises `UnknownJob`."""
    existing = yield from _past([job])
    if not existing:
        raise UnknownJob
    return existing[0]


def replay(jobs: Sequence[UUID], keys: OwnerKeys) -> Operation[list[JobRef]]:
    """Run finished jobs again, each as a new job; all of them or none, in a transaction.

    Jobs that died waiting for one of them are replayed too.

    Returns:
        The new job of each, in order; `created` is False if it was replayed before.

    Raises:
        UnknownJob: a job does not exist.
        NotFinished: a job has not ended.
        PayloadGone: a job's payload is no longer kept.
    """
    rows = yield Query(_FAMILIES, (list(jobs),))
    if set(jobs) - {row[0] for row in rows}:
        raise UnknownJob
    if not all(row[4] for row in rows):
        raise NotFinished("The job has not ended; wait for it, or cancel it, before a replay.")
    references: dict[UUID, JobRef] = {}
    for (owner, privacy), group in groupby(rows, key=lambda row: (row[2], row[3])):
        key = None
        if privacy == Privacy.PRIVATE.value:
            key = yield from keys.require(owner)
        yield row_security_owners([owner])
        for batch in _batches(list(group)):
            references |= yield from _replay_batch(batch, owner, privacy, key)
    return [references[job] for job in jobs]


def _listed(job_filter: JobFilter, state: LiteralString) -> Operation[list[PastJob]]:
    # The row-security context names the owners, so that their stored payloads are visible.
    rows = yield job_filter.query("j.id, j.owner", state)
    yield row_security_owners(sorted({row[1] for row in rows}))
    return (yield from _past([row[0] for row in rows], in_context=True))


def _past(jobs: Sequence[UUID], *, in_context: bool = False) -> Operation[list[PastJob]]:
    if not in_context:
        rows = yield Query(
            "SELECT owner FROM vestry.jobs WHERE id = ANY (%b::uuid[])", (list(jobs),)
        )
        yield row_security_owners(row[0] for row in rows)
    rows = yield Query(_PAST, (list(jobs),))
    by_id = {row[0]: _past_job(row) for row in rows}
    return [by_id[job] for job in jobs if job in by_id]


def _past_job(row: Sequence[Any]) -> PastJob:
    status = status_of(tuple(row[:STATUS_COLUMNS]))
    replay_of, replayed_as, kept, fallback = row[STATUS_COLUMNS:]
    receipt = fallback or {}
    return PastJob(
        status=status,
        reason=reason_of(row[9]) if status.state is State.DEAD else None,
        replay_of=replay_of,
        replayed_as=replayed_as,
        kept=kept,
        degraded_by=receipt.get("reason"),
        intended_model=receipt.get("intended_model"),
        served_model=receipt.get("served_model"),
    )


def _batches(rows: Sequence[Any]) -> Iterator[list[UUID]]:
    """Batches of jobs in the order of their ids; a job and its followers are in one batch."""
    batch: set[UUID] = set()
    for _, family in groupby(rows, key=lambda row: row[1]):
        members = {row[0] for row in family}
        if batch and len(batch) + len(members) > BATCH_JOBS:
            yield sorted(batch)
            batch = set()
        batch |= members
    if batch:
        yield sorted(batch)


def _replay_batch(
    jobs: Sequence[UUID], owner: str, privacy: str, key: OwnerKey | None
) -> Operation[dict[UUID, JobRef]]:
    rows = yield Query(_PAYLOADS[privacy], (list(jobs),))
    bodies = {row[0]: row[1] for row in rows}
    missing = tuple(job for job in jobs if job not in bodies)
    if missing:
        raise PayloadGone(missing)
    ids = sorted(uuid7() for _ in jobs)
    pairs = list(zip(jobs, ids, strict=True))
    sealed = texts = None
    if key is None:
        texts = [bodies[job] for job in jobs]
    else:
        sealed = [key.seal(PAYLOAD, new, key.open(PAYLOAD, old, bodies[old])) for old, new in pairs]
    rows = yield Query(_REPLAY, (list(jobs), ids, key and key.key_id, sealed, texts))
    references = {
        old: JobRef(row[1], created=row[2] == "created")
        for (old, _), row in zip(pairs, sorted(rows), strict=True)
        if row[2] != "gone"
    }
    if len(references) < len(jobs):
        raise UnknownJob
    yield from _copy_files(
        {old: ref.id for old, ref in references.items() if ref.created}, owner, privacy, key
    )
    return references


def _copy_files(
    jobs: dict[UUID, UUID], owner: str, privacy: str, key: OwnerKey | None
) -> Operation[None]:
    """Copy the old jobs' files to the new ones, one part of at most 1 MiB at a time."""
    parts = (yield Query(_PARTS[privacy], (list(jobs),))) if jobs else []
    for old, name, part in parts:
        rows = yield Query(_PART[privacy], (old, name, part))
        body = bytes(rows[0][0])
        if key is not None:
            field = blob_field(name, part)
            body = key.seal(field, jobs[old], key.open(field, old, body))
        yield Query(
            STORE_BLOBS, (owner, privacy, key and key.key_id, [jobs[old]], [name], [part], [body])
        )
