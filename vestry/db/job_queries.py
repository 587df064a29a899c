"""Operations on existing jobs, lanes and documents: states, results, cancel, pause, delete. No I/O."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from vestry.crypto.envelope import RESULT, plain_digest
from vestry.crypto.owner_keys import OwnerKeys
from vestry.db.operations import Operation, Query, owners_setting, row_security_owners
from vestry.errors import (
    InvalidInput,
    JobFailed,
    NotFinished,
    ResultGone,
    UnknownJob,
    UnknownLane,
)
from vestry.jobs.base import privacy_name
from vestry.jobs.embedding import Document, document_id, external_hash
from vestry.jobs.results import JobRef, JobStatus, Result, State, parse_result
from vestry.lanes import LANES, Privacy
from vestry.validation import check_label, check_source

JobLike = JobRef | JobStatus | UUID | str
"""Identifies a job."""

SELECT_STATUS: Final = """SELECT id, kind, state, owner, privacy, latency, lane, attempt, degraded,
  error_code, error_message, created_at, run_at, started_at, finished_at, parent_id, root_id"""
STATUS_COLUMNS: Final = 17
"""Number of columns that `status_of` reads."""
# The row-security context is set from the job's own row: that saves a statement.
_OPEN_JOB: Final = (
    f"{SELECT_STATUS}, {owners_setting('ARRAY[owner]')} FROM vestry.jobs WHERE id = %b::uuid"
)
_FLOW: Final = f"""{SELECT_STATUS} FROM vestry.jobs
  WHERE id = %b::uuid OR root_id = (SELECT root_id FROM vestry.jobs WHERE id = %b::uuid)
  ORDER BY id"""  # noqa: S608 - our own text
_STATUSES: Final = SELECT_STATUS + " FROM vestry.jobs WHERE id = ANY (%b::uuid[])"
_FINISHED: Final = "SELECT finished_at IS NOT NULL FROM vestry.jobs WHERE id = %b::uuid"
_READ: Final = {
    "private": "SELECT body FROM vestry.private_results WHERE job_id = %b::uuid",
    "shareable": "SELECT body FROM vestry.shareable_results WHERE job_id = %b::uuid",
}
_TAKE: Final = {
    "private": "DELETE FROM vestry.private_results WHERE job_id = %b::uuid RETURNING body",
    "shareable": "DELETE FROM vestry.shareable_results WHERE job_id = %b::uuid RETURNING body",
}
_CANCEL: Final = "SELECT job_id, state FROM vestry.cancel_jobs_v1(%b::uuid[])"
_PAUSE: Final = "SELECT vestry.pause_lane_v1(%s::text, %b::boolean)"
_DELETE: Final = "SELECT vestry.delete_documents_v1(%s::text, %s::text, %s::text, %b::bytea[])"
# Counted, not estimated: with a million queued rows that takes most of a second.
_LANES: Final = """
SELECT l.lane, coalesce(q.queued, 0), coalesce(r.running, 0),
       extract(epoch FROM vestry.clock() - q.oldest)::float8, l.paused_at IS NOT NULL
FROM vestry.lanes l
LEFT JOIN (SELECT lane, count(*) AS queued, min(run_at) AS oldest
           FROM vestry.jobs WHERE state = 'queued' GROUP BY lane) q USING (lane)
LEFT JOIN (SELECT lane, count(*) AS running
           FROM vestry.jobs WHERE lease_id IS NOT NULL GROUP BY lane) r USING (lane)
ORDER BY l.lane"""


@dataclass(frozen=True, slots=True)
class LaneStatus:
    """Queued and running jobs of a lane.

    Attributes:
        queued: jobs that are queued, scheduled ones included.
        running: jobs under a lease.
        oldest_age_s: seconds since the oldest queued job became ready; None if none is ready.
        paused: whether claims from it are stopped.
    """

    lane: str
    queued: int
    running: int
    oldest_age_s: float | None
    paused: bool


_BACKENDS: Final = "SELECT backend, state, failures, reason, open_s FROM vestry.breakers_v1()"


@dataclass(frozen=True, slots=True)
class BackendStatus:
    """A backend with recent failures.

    Attributes:
        breaker: state of its circuit breaker: `closed`, `open`, or `half_open` during the probe.
        failures: consecutive failures.
        reason: code of the last error.
        away_s: seconds until the next probe; None unless the breaker is open.
    """

    backend: str
    breaker: str
    failures: int
    reason: str | None
    away_s: float | None


def backends() -> Operation[list[BackendStatus]]:
    """Backends with recent failures; healthy ones are left out."""
    rows = yield Query(_BACKENDS)
    return [BackendStatus(*row) for row in rows]


def has_documents(owner: str) -> Operation[bool]:
    """Whether anything is indexed for an owner; in a transaction."""
    yield row_security_owners([owner])
    rows = yield Query(
        """SELECT EXISTS (SELECT FROM vestry.private_documents WHERE owner = %s AND NOT deleted)
               OR EXISTS (SELECT FROM vestry.shareable_documents WHERE owner = %s AND NOT deleted)""",
        (owner, owner),
    )
    return bool(rows[0][0])


def job_id(job: JobLike) -> UUID:
    """The id of a job.

    Raises:
        InvalidInput: `job` identifies none.
    """
    match job:
        case UUID():
            return job
        case JobRef():
            return job.id
        case JobStatus():
            return job.job
        case str():
            try:
                return UUID(job)
            except ValueError:
                pass
    raise InvalidInput("job", "must be a job's id, which is a UUID")


def job_ids(jobs: JobLike | Iterable[JobLike]) -> list[UUID]:
    """The ids of one job or many."""
    if isinstance(jobs, (UUID, JobRef, JobStatus, str)):
        return [job_id(jobs)]
    return [job_id(job) for job in jobs]


def is_many(jobs: object) -> bool:
    """Whether `jobs` is a sequence of jobs; a str is one job."""
    return isinstance(jobs, Sequence) and not isinstance(jobs, str)


def check_finished(job: UUID) -> Operation[None]:
    """Check that a job is in a final state.

    Raises:
        NotFinished, UnknownJob: it is not, or does not exist.
    """
    rows = yield Query(_FINISHED, (job,), prepare=True)
    if not rows:
        raise UnknownJob
    if not rows[0][0]:
        raise NotFinished


def statuses(jobs: Sequence[UUID]) -> Operation[list[JobStatus]]:
    """States of jobs, in the order of `jobs`; jobs that do not exist are left out."""
    rows = yield Query(_STATUSES, (list(jobs),))
    by_id = {row[0]: status_of(row) for row in rows}
    return [by_id[job] for job in jobs if job in by_id]


def status(job: UUID) -> Operation[JobStatus]:
    """One job's state."""
    existing = yield from statuses([job])
    if not existing:
        raise UnknownJob
    return existing[0]


def flow(job: UUID) -> Operation[list[JobStatus]]:
    """All jobs of a job's flow, each after its parent; one job if it is in no flow."""
    rows = yield Query(_FLOW, (job, job))
    if not rows:
        raise UnknownJob
    return [status_of(row) for row in rows]


def outcome(
    job: UUID, keys: OwnerKeys, *, discard: bool = False
) -> Operation[tuple[JobStatus, dict[str, Any]]]:
    """A finished job's status and result as JSON; in a transaction if the result is discarded.

    Args:
        job: its id.
        keys: open private results.
        discard: delete the result.

    Raises:
        UnknownJob, NotFinished, ResultGone: there is nothing to read.
        JobFailed: or its subclasses, by how the job ended.
    """
    # Both tables are read in the round trip that returns the job's privacy class.
    texts = (_TAKE if discard else _READ).values()
    rows = yield tuple(Query(text, (job,), prepare=True) for text in (_OPEN_JOB, *texts))
    if not rows:
        raise UnknownJob
    job_status, bodies = status_of(rows[0]), rows[1:]
    if not job_status.finished:
        raise NotFinished
    if job_status.state is not State.SUCCEEDED:
        raise JobFailed.of(job_status.state, rows[0][9], rows[0][10])
    if not bodies:
        raise ResultGone
    body = bodies[0][0]
    if job_status.privacy == Privacy.PRIVATE.value:
        key = yield from keys.require(job_status.owner)
        body = key.open(RESULT, job, body)
    opened: dict[str, Any] = json.loads(body)
    return job_status, opened


def result(job: UUID, keys: OwnerKeys) -> Operation[Result]:
    """A finished job's typed result; raises as `outcome`."""
    job_status, body = yield from outcome(job, keys)
    return parse_result(job_status.kind, body)


def cancel(jobs: Sequence[UUID]) -> Operation[dict[UUID, State]]:
    """Cancel those of the jobs that are unfinished; returns the state of each after that."""
    rows = yield Query(_CANCEL, (list(jobs),))
    states = {row[0]: State(row[1]) for row in rows}
    if len(jobs) == 1 and not states:
        raise UnknownJob
    return states


def lanes() -> Operation[list[LaneStatus]]:
    """Queued and running jobs of all lanes."""
    rows = yield Query(_LANES)
    return [
        LaneStatus(lane, queued, running, None if age is None else max(age, 0.0), paused)
        for lane, queued, running, age, paused in rows
    ]


def pause_lane(lane: str, *, paused: bool) -> Operation[None]:
    """Stop or resume claims from a lane."""
    if lane not in LANES:
        raise UnknownLane(f"There is no such lane; the lanes are {', '.join(LANES)}.")
    yield Query(_PAUSE, (str(lane), paused))


def delete_documents(
    owner: str, privacy: str, source: str, ids: Iterable[str | Document], keys: OwnerKeys
) -> Operation[int]:
    """Delete documents with their chunks and vectors; returns how many."""
    check_label("owner", owner)
    privacy = privacy_name(privacy)
    check_source(source)
    if isinstance(ids, (str, bytes)):
        raise InvalidInput("ids", "must be a list")
    digest: Any = plain_digest
    if privacy == Privacy.PRIVATE.value:
        key = yield from keys.find(owner)
        if key is None:
            return 0
        digest = key.digest
    hashes = []
    for index, document in enumerate(ids):
        if not isinstance(document, Document):
            check_label(f"ids[{index}]", document)
        name = document_id(document, digest) if isinstance(document, Document) else document
        hashes.append(external_hash(digest, source, name))
    # Sorted, so that two callers that delete the same documents do not deadlock.
    rows = yield Query(_DELETE, (owner, privacy, source, sorted(set(hashes))))
    return int(rows[0][0])


def status_of(row: tuple[Any, ...]) -> JobStatus:
    """The status in a row of `SELECT_STATUS`."""
    job, kind, state, owner, privacy, latency, lane, attempt, degraded, code, message = row[:11]
    created_at, run_at, started_at, finished_at, parent, root = row[11:17]
    return JobStatus(
        job=job,
        kind=kind,
        state=State(state),
        owner=owner,
        privacy=privacy,
        latency=latency,
        lane=lane,
        attempt=attempt,
        degraded=degraded,
        error=None if code is None else (str(code), str(message or "")),
        created_at=created_at,
        run_at=run_at,
        started_at=started_at,
        finished_at=finished_at,
        parent=parent,
        root=root,
    )
