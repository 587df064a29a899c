"""Jobs that are over and may be run once more: dead ones, and ones that another model served. No I/O.

A replay is a new job that names the old one. What the old one was given is opened and sealed again for
the new id, so it must still be there; docs/guarantees.md says for how long it is.
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
from vestry.db.job_queries import SELECT_STATUS, STATUS_COLUMNS, status_of
from vestry.db.operations import Operation, Query, uuid7
from vestry.errors import InvalidInput, NotFinished, PayloadGone, UnknownJob
from vestry.failure_reasons import REASONS, Reason, codes_of, reason_of
from vestry.jobs.results import JobRef, JobStatus, State
from vestry.lanes import KINDS, LANES, Privacy

BATCH_JOBS: Final = 32
"""Jobs replayed in one call, whose payloads are in memory together."""

_NAME: Final = "SELECT set_config('vestry.owners', (%s::text[])::text, true)"
_WHICH: Final = """ FROM vestry.jobs j WHERE {state}
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
# The jobs named, and below each those that died waiting for it; `top` is the one that was named.
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
_STORE: Final = """SELECT vestry.store_blobs_v1(
  %s::text, %s::text, %b::uuid, %b::uuid[], %b::text[], %b::int[], %b::bytea[])"""


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which dead or degraded jobs are meant; without any of it, all of them.

    Attributes:
        kind: of this kind.
        owner: of this owner.
        lane: that ran in this lane.
        code: with this error code.
        reason: with a code that belongs to this reason.
        since: that ended at this time or later, or so long ago at most.
        replayed: also those that were replayed already.
        limit: the latest so many.
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
            raise InvalidInput("kind", f"is none of {', '.join(KINDS)}")
        if self.lane is not None and self.lane not in LANES:
            raise InvalidInput("lane", f"is none of {', '.join(LANES)}")
        if self.reason is not None and self.reason not in set(Reason):
            raise InvalidInput("reason", f"is none of {', '.join(Reason)}")
        if isinstance(self.since, dt.datetime) and self.since.utcoffset() is None:
            raise InvalidInput("since", "must be a datetime with a time zone")
        if self.limit < 1:
            raise InvalidInput("limit", "must be at least 1")

    def query(self, what: LiteralString, state: LiteralString) -> Query:
        """`SELECT what` of the jobs meant."""
        codes = None if self.code is None else [self.code]
        none_of = None
        if self.reason is not None:
            known = codes_of(Reason(self.reason))
            if Reason(self.reason) is Reason.OTHER:
                none_of = list(REASONS)
            else:
                codes = known if codes is None else [code for code in codes if code in known]
        moment = self.since if isinstance(self.since, dt.datetime) else None
        age = self.since if isinstance(self.since, dt.timedelta) else None
        pairs = (self.kind, self.owner, self.lane, codes, none_of)
        return Query(
            "SELECT " + what + _WHICH.replace("{state}", state),
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
        status: how it ended.
        reason: why, where it is dead.
        replay_of: the job that it is a replay of.
        replayed_as: the job that is its replay.
        kept: what it was given is still there, so that it can be replayed.
        degraded_by: where another model than the intended one served it: why, as one of the policy's
            words.
        intended_model: that model.
        served_model: the one that did.
    """

    status: JobStatus
    reason: Reason | None
    replay_of: UUID | None
    replayed_as: UUID | None
    kept: bool
    degraded_by: str | None = None
    intended_model: str | None = None
    served_model: str | None = None


def dead(which: JobFilter) -> Operation[list[PastJob]]:
    """Dead jobs, the latest first; in a transaction."""
    return (yield from _listed(which, _DEAD))


def degraded(which: JobFilter) -> Operation[list[PastJob]]:
    """Jobs that another model than the intended one served, the latest first; in a transaction."""
    return (yield from _listed(which, _DEGRADED))


def past_job(job: UUID) -> Operation[PastJob]:
    """One job; in a transaction. Raises `UnknownJob`."""
    found = yield from _past([job])
    if not found:
        raise UnknownJob
    return found[0]


def replay(jobs: Sequence[UUID], keys: OwnerKeys) -> Operation[list[JobRef]]:
    """Run finished jobs once more, each as a new job; all of them or none, in a transaction.

    Jobs that died waiting for one of them come along.

    Returns:
        The new job of each, in order; `created` is False where it had been replayed before.

    Raises:
        UnknownJob: one does not exist.
        NotFinished: one still goes on.
        PayloadGone: what one was given is no longer kept.
    """
    rows = yield Query(_FAMILIES, (list(jobs),))
    if set(jobs) - {row[0] for row in rows}:
        raise UnknownJob
    if not all(row[4] for row in rows):
        raise NotFinished("the job still goes on; only a finished one can be replayed")
    made: dict[UUID, JobRef] = {}
    for (owner, privacy), group in groupby(rows, key=lambda row: (row[2], row[3])):
        key = None
        if privacy == Privacy.PRIVATE.value:
            key = yield from keys.require(owner)
        yield Query(_NAME, ([owner],))
        for batch in _batches(list(group)):
            made |= yield from _replay_batch(batch, owner, privacy, key)
    return [made[job] for job in jobs]


def _listed(which: JobFilter, state: LiteralString) -> Operation[list[PastJob]]:
    # The listed jobs' owners are named, so that it can be seen what of theirs is kept.
    rows = yield which.query("j.id, j.owner", state)
    yield Query(_NAME, (sorted({row[1] for row in rows}),))
    return (yield from _past([row[0] for row in rows], named=True))


def _past(jobs: Sequence[UUID], *, named: bool = False) -> Operation[list[PastJob]]:
    if not named:
        rows = yield Query(
            "SELECT owner FROM vestry.jobs WHERE id = ANY (%b::uuid[])", (list(jobs),)
        )
        yield Query(_NAME, ([row[0] for row in rows],))
    rows = yield Query(_PAST, (list(jobs),))
    found = {row[0]: _past_job(row) for row in rows}
    return [found[job] for job in jobs if job in found]


def _past_job(row: Sequence[Any]) -> PastJob:
    status = status_of(tuple(row[:STATUS_COLUMNS]))
    replay_of, replayed_as, kept, fallback = row[STATUS_COLUMNS:]
    told = fallback or {}
    return PastJob(
        status=status,
        reason=reason_of(row[9]) if status.state is State.DEAD else None,
        replay_of=replay_of,
        replayed_as=replayed_as,
        kept=kept,
        degraded_by=told.get("reason"),
        intended_model=told.get("intended_model"),
        served_model=told.get("served_model"),
    )


def _batches(rows: Sequence[Any]) -> Iterator[list[UUID]]:
    """Jobs in order of their ids, families whole, and some families at a time."""
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
    made = {
        old: JobRef(row[1], created=row[2] == "created")
        for (old, _), row in zip(pairs, sorted(rows), strict=True)
        if row[2] != "gone"
    }
    if len(made) < len(jobs):
        raise UnknownJob
    yield from _copy_files(
        {old: ref.id for old, ref in made.items() if ref.created}, owner, privacy, key
    )
    return made


def _copy_files(
    jobs: dict[UUID, UUID], owner: str, privacy: str, key: OwnerKey | None
) -> Operation[None]:
    """The old jobs' files for the new ones, a part of at most 1 MiB at a time."""
    parts = (yield Query(_PARTS[privacy], (list(jobs),))) if jobs else []
    for old, name, part in parts:
        rows = yield Query(_PART[privacy], (old, name, part))
        body = bytes(rows[0][0])
        if key is not None:
            field = blob_field(name, part)
            body = key.seal(field, jobs[old], key.open(field, old, body))
        yield Query(
            _STORE, (owner, privacy, key and key.key_id, [jobs[old]], [name], [part], [body])
        )
