"""Execution of one batch: claim it, open its payloads, run its handler, finish it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

import psycopg
from psycopg_pool import ConnectionPool

from inference.remote.egress import on_behalf_of
from models import claims, documents, payloads, transitions
from models.claims import ClaimedJob, Lease, LeasePolicy, LowWaterMark
from models.content import Content
from models.documents import DocumentState
from tasks.protocol import (
    Context,
    Failed,
    Handler,
    Job,
    NoPassageSearch,
    Outcome,
    PassageSearch,
)
from vestry.bisection import bisect_failures
from vestry.errors import VestryError
from vestry.jobs.base import UPSTREAM
from vestry.lanes import WITH_FILES
from workers import failpoints
from workers.db import session
from workers.execution.finish import Finished, Finisher
from workers.execution.heartbeat import Heartbeat
from workers.failpoints import failpoint

Connection = psycopg.Connection[Any]
log = logging.getLogger(__name__)

NO_UPSTREAM_TEXT: Final = Failed(
    "no_upstream_text",
    "no earlier job of its flow has a result with a text, or the result was pruned",
)
EMPTY_UPSTREAM_TEXT: Final = Failed(
    "empty_text", "the text of the earlier job in its flow is empty"
)


@dataclass(frozen=True, slots=True)
class ClaimedBatch:
    """A claimed batch with its stored payloads, read in the claiming transaction."""

    lease: Lease
    bodies: Mapping[UUID, bytes | str]
    states: Mapping[UUID, list[DocumentState]]
    blobs: Mapping[UUID, Mapping[str, Sequence[bytes]]] = field(default_factory=dict)
    upstream: Mapping[UUID, Sequence[tuple[UUID, bytes | str]]] = field(default_factory=dict)
    """By job, the results of the earlier jobs in its flow, the nearest first."""


@dataclass(slots=True)
class Executor:
    """Claims and runs batches. One per process, used by several threads.

    Args:
        pool: database connections.
        content: how the privacy class stores content.
        handlers: kind to handler.
        policy: the policy of its leases.
        heartbeat: extends the claimed leases.
        finisher: commits outcomes.
        passage_search: finds the passages that answers are grounded in.
    """

    pool: ConnectionPool[Connection]
    content: Content
    handlers: Mapping[str, Handler]
    policy: LeasePolicy
    heartbeat: Heartbeat
    finisher: Finisher
    passage_search: PassageSearch = field(default_factory=NoPassageSearch)
    marks: dict[tuple[str, str, bool], LowWaterMark] = field(default_factory=dict)
    """By lane, kind and whether quarantined: quarantined jobs have their own mark, since their start
    tags may be below the ordinary one."""

    def claim(
        self,
        lane: str,
        kinds: Sequence[str],
        *,
        hint: UUID | None = None,
        limit: int = 256,
        budgets: Mapping[str, int] | None = None,
        quarantined: bool = False,
    ) -> ClaimedBatch | None:
        """Claim a batch of one of the kinds and read its payloads, in one synchronous commit.

        Raises:
            psycopg.Error: the database is unavailable. A claim whose COMMIT result is unknown is
                released with the next claim or heartbeat.
        """
        marks = {
            kind: self.marks.setdefault((lane, kind, quarantined), LowWaterMark()) for kind in kinds
        }
        # A claim that takes longer could not be released before its lease expires.
        limit_s = self.policy.lease_s / 2
        if self.heartbeat.unconfirmed.pending(unchecked=True):
            # If the next batch killed the process, jobs of unconfirmed claims would be quarantined.
            with session(self.pool, limit_s) as conn:
                self.heartbeat.unconfirmed.release(conn)
        lease: Lease | None = None
        used: Connection | None = None
        try:
            # A pipeline: statements without a result share one round trip.
            with session(self.pool, limit_s) as conn, conn.pipeline():
                used = conn
                lease = claims.claim(
                    conn,
                    self.policy,
                    lane,
                    kinds,
                    hint=hint,
                    limit=limit,
                    budgets=budgets,
                    marks=marks,
                    quarantined=quarantined,
                )
                if lease is None:
                    return None
                batch = self._commit(conn, lease)
        except psycopg.Error:
            # On a connection that is still open, the transaction was rolled back.
            if lease is not None and used is not None and used.closed:
                self.heartbeat.unconfirmed.add(lease)
            raise
        self.heartbeat.add(lease)
        failpoint(failpoints.AFTER_CLAIM, lease)
        return batch

    def run(self, batch: ClaimedBatch) -> Finished:
        """Run a claimed batch and commit its outcomes.

        A job's fault is an outcome, never an exception.

        Raises:
            psycopg.Error: the database stayed unavailable; the reconciler will requeue the jobs.
        """
        lease = batch.lease
        try:
            outcomes = self._handle(batch)
            failpoint(failpoints.AFTER_INFERENCE, lease)
            return self.finisher.finish(lease, outcomes)
        finally:
            self.heartbeat.remove(lease)

    def release(self, lease: Lease) -> None:
        """Release a batch that has not run to its end, with no attempt spent."""
        self.heartbeat.mark_lost(lease)
        with session(self.pool, self.policy.lease_s) as conn:
            transitions.release(conn, lease.id)

    def _commit(self, conn: Connection, lease: Lease) -> ClaimedBatch:
        """Commit a claim, and read the payloads of its jobs with it."""
        owners = {job.id: job.owner for job in lease.jobs}
        self.content.begin(conn, set(owners.values()))
        read_bodies = payloads.read_payloads(conn, self.content, owners)
        read_states = documents.read_states(conn, self.content.privacy, list(owners))
        read_blobs: Callable[[], Mapping[UUID, Mapping[str, Sequence[bytes]]]] = dict
        read_upstream: Callable[[], Mapping[UUID, Sequence[tuple[UUID, bytes | str]]]] = dict
        if lease.jobs[0].kind in WITH_FILES:
            read_blobs = payloads.read_blobs(conn, self.content, owners)
        if following := [job.id for job in lease.jobs if job.parent_id is not None]:
            read_upstream = payloads.read_upstream(conn, self.content, following)
        conn.commit()
        failpoint(failpoints.AFTER_CLAIM_COMMIT, conn, lease)
        return ClaimedBatch(lease, read_bodies(), read_states(), read_blobs(), read_upstream())

    def _handle(self, batch: ClaimedBatch) -> dict[UUID, Outcome]:
        handler = self.handlers[batch.lease.jobs[0].kind]
        outcomes: dict[UUID, Outcome] = {}
        jobs: list[Job] = []
        for row in batch.lease.jobs:
            job = self._open(row, batch)
            if isinstance(job, Failed):
                outcomes[row.id] = job
            else:
                jobs.append(job)
        if jobs:
            context = Context(
                cancellation=self.heartbeat,
                digest={job.owner: self.content.digest(job.owner) for job in jobs},
                passage_search=self.passage_search,
            )
            outcomes.update(_run_isolated(handler, jobs, context))
        return outcomes

    def _open(self, row: ClaimedJob, batch: ClaimedBatch) -> Job | Failed:
        """Open a job's payload, files and upstream text."""
        body = batch.bodies.get(row.id)
        if body is None:
            return Failed("payload_missing", "the job's payload is missing; submit it again")
        try:
            payload = payloads.open_payload(self.content, row.id, row.owner, body)
            blobs = payloads.open_blobs(
                self.content, row.id, row.owner, batch.blobs.get(row.id, {})
            )
            if row.parent_id is not None and _has_placeholder(payload):
                text = payloads.upstream_text(
                    self.content, row.owner, batch.upstream.get(row.id, ())
                )
                if text is None or not text.strip():
                    return NO_UPSTREAM_TEXT if text is None else EMPTY_UPSTREAM_TEXT
                payload = _fill_placeholder(payload, text)
        except VestryError as error:
            # The key ring may be newer on another worker, or at the next attempt.
            return Failed("unsealable", str(error), retryable=True)
        except ValueError as error:
            return Failed("bad_payload", str(error))
        return Job(
            id=row.id,
            kind=row.kind,
            task=row.task,
            owner=row.owner,
            privacy=self.content.privacy,
            latency=row.latency,
            model=row.model,
            payload=payload,
            quality=row.quality,
            tier=row.tier,
            blobs=blobs,
            tried_models=row.tried_models or {},
            documents=tuple(batch.states.get(row.id, ())),
        )


def _has_placeholder(value: Any) -> bool:
    """Whether a payload holds `UPSTREAM`: a job in a flow may have texts of its own instead."""
    if isinstance(value, dict):
        return any(map(_has_placeholder, value.values()))
    if isinstance(value, list):
        return any(map(_has_placeholder, value))
    return isinstance(value, str) and value == UPSTREAM


def _fill_placeholder(value: Any, text: str) -> Any:
    """A payload with each string that is `UPSTREAM` replaced."""
    if isinstance(value, dict):
        return {name: _fill_placeholder(inner, text) for name, inner in value.items()}
    if isinstance(value, list):
        return [_fill_placeholder(inner, text) for inner in value]
    return text if value == UPSTREAM else value


def _run_isolated(handler: Handler, batch: Sequence[Job], context: Context) -> dict[UUID, Outcome]:
    """Run a handler; if it raises, run its halves separately, so that one job fails alone."""

    def call(jobs: Sequence[Job]) -> Sequence[Outcome]:
        try:
            with on_behalf_of([job.id for job in jobs]):
                outcomes = handler(jobs, context)
            if len(outcomes) != len(jobs):
                message = f"the handler returned {len(outcomes)} outcomes for {len(jobs)} jobs"
                raise RuntimeError(message)  # noqa: TRY301
        except Exception as error:
            name = type(error).__name__
            log.error("batch of %d jobs failed in its handler (%s)", len(jobs), name)  # noqa: TRY400
            raise
        return outcomes

    results: dict[UUID, Outcome] = {}
    # Every exception: a handler's bug fails a job, never the worker.
    for jobs, outcomes in bisect_failures(batch, call, (Exception,)):
        if isinstance(outcomes, Exception):
            message = f"the handler raised {type(outcomes).__name__}; see the worker's log"
            results[jobs[0].id] = Failed("handler_error", message, retryable=True)
        else:
            results.update(zip((job.id for job in jobs), outcomes, strict=True))
    return results
