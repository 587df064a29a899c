"""Runs one batch: claim, open, handle, finish. Knows nothing of Celery."""

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
from models.claim_query import LowWaterMark
from models.claims import ClaimedJob, Lease, LeasePolicy
from models.content import Content
from models.documents import DocumentState
from tasks.protocol import (
    Context,
    DocumentRef,
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
from workers.db import session
from workers.execution.finish import Finished, Finisher
from workers.execution.heartbeat import Heartbeat

Connection = psycopg.Connection[Any]
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ClaimedBatch:
    """A claimed batch with what the database holds for it, read in the claiming transaction."""

    lease: Lease
    bodies: Mapping[UUID, bytes | str]
    states: Mapping[UUID, list[DocumentState]]
    blobs: Mapping[UUID, Mapping[str, Sequence[bytes]]] = field(default_factory=dict)
    upstream: Mapping[UUID, Sequence[tuple[UUID, bytes | str]]] = field(default_factory=dict)
    """Results of the jobs before each in its flow, the nearest first."""


@dataclass(slots=True)
class Executor:
    """Everything a batch needs. One per process, used by several threads.

    Args:
        pool: database connections.
        content: how the privacy class stores content.
        handlers: kind to handler.
        terms: lease terms.
        heart: the process's heartbeat.
        finisher: commits what comes of a batch.
        library: what answers may be grounded in.
    """

    pool: ConnectionPool[Connection]
    content: Content
    handlers: Mapping[str, Handler]
    policy: LeasePolicy
    heartbeat: Heartbeat
    finisher: Finisher
    passage_search: PassageSearch = field(default_factory=NoPassageSearch)
    marks: dict[tuple[str, str, bool], LowWaterMark] = field(default_factory=dict)
    """By lane, kind and line: suspects stand in one of their own, behind where the ordinary line's mark
    may be by then."""

    def claim(
        self,
        lane: str,
        kinds: Sequence[str],
        *,
        hint: UUID | None = None,
        limit: int = 256,
        budgets: Mapping[str, int] | None = None,
        suspect: bool = False,
    ) -> ClaimedBatch | None:
        """Claim a batch of one of the kinds and read its payloads, in one synchronous commit.

        Raises:
            psycopg.Error: the database is away; what may have been claimed is handed back, with the
                next claim or heartbeat.
        """
        marks = {
            kind: self.marks.setdefault((lane, kind, suspect), LowWaterMark()) for kind in kinds
        }
        # Cut while there is time to hand back what it may have claimed, before that runs out.
        limit_s = self.policy.lease_s / 2
        if self.heartbeat.unconfirmed.pending(unchecked=True):
            # What is run next may take the process down, and with it whom it does not know that it has.
            with session(self.pool, limit_s) as conn:
                self.heartbeat.unconfirmed.release(conn)
        lease: Lease | None = None
        lost: Connection | None = None
        try:
            # A pipeline: statements whose answers nobody waits for share a round trip.
            with session(self.pool, limit_s) as conn, conn.pipeline():
                lost = conn
                lease = claims.claim(
                    conn,
                    self.policy,
                    lane,
                    kinds,
                    hint=hint,
                    limit=limit,
                    budgets=budgets,
                    marks=marks,
                    suspect=suspect,
                )
                if lease is None:
                    return None
                opened = self._commit(conn, lease)
        except psycopg.Error:
            # On a connection that is whole, whatever failed was rolled back.
            if lease is not None and lost is not None and lost.closed:
                self.heartbeat.unconfirmed.add(lease)
            raise
        self.heartbeat.add(lease)
        return opened

    def _commit(self, conn: Connection, lease: Lease) -> ClaimedBatch:
        """Commit a claim, with what the database holds for it."""
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
        return ClaimedBatch(lease, read_bodies(), read_states(), read_blobs(), read_upstream())

    def run(self, opened: ClaimedBatch) -> Finished:
        """Handle a claimed batch and commit what came of it.

        Never raises for a job's fault.

        Raises:
            psycopg.Error: the database stayed away; the reconciler gives the jobs to somebody else.
        """
        lease = opened.lease
        try:
            return self.finisher.finish(lease, self._handle(opened))
        finally:
            self.heartbeat.remove(lease)

    def release(self, lease: Lease) -> None:
        """Give a batch back, unrun or half run, with no attempt spent."""
        self.heartbeat.mark_lost(lease)
        with session(self.pool, self.policy.lease_s) as conn:
            transitions.release(conn, lease.id)

    def _handle(self, opened: ClaimedBatch) -> dict[UUID, Outcome]:
        kind = opened.lease.jobs[0].kind
        handler = self.handlers[kind]
        outcomes: dict[UUID, Outcome] = {}
        batch: list[Job] = []
        for row in opened.lease.jobs:
            job = self._open(row, opened)
            if isinstance(job, Failed):
                outcomes[row.id] = job
            else:
                batch.append(job)
        if batch:
            context = Context(
                cancellation=self.heartbeat,
                digest={job.owner: self.content.digest(job.owner) for job in batch},
                passage_search=self.passage_search,
            )
            outcomes.update(_run_isolated(handler, batch, context))
        return outcomes

    def _open(self, row: ClaimedJob, opened: ClaimedBatch) -> Job | Failed:
        body = opened.bodies.get(row.id)
        if body is None:
            return Failed("payload_missing", "the job's payload is gone; submit it again")
        try:
            payload = payloads.open_payload(self.content, row.id, row.owner, body)
            blobs = payloads.open_blobs(
                self.content, row.id, row.owner, opened.blobs.get(row.id, {})
            )
            if row.parent_id is not None and _awaits_text(payload):
                text = payloads.upstream_text(
                    self.content, row.owner, opened.upstream.get(row.id, ())
                )
                if text is None or not text.strip():
                    return NO_UPSTREAM_TEXT if text is None else EMPTY_UPSTREAM_TEXT
                payload = _with_text(payload, text)
        except VestryError as error:
            # Another key ring may be mounted, or still to be: worth another attempt.
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
            attempt=row.attempt,
            model=row.model,
            payload=payload,
            quality=row.quality,
            tier=row.tier,
            blobs=blobs,
            tried_models=row.passed_over or {},
            documents=tuple(
                DocumentRef(
                    document_id=s.document_id,
                    generation=s.generation,
                    indexed_hash=s.indexed_hash,
                    indexed_space=s.indexed_space,
                    current=s.current,
                )
                for s in opened.states.get(row.id, ())
            ),
        )


NO_UPSTREAM_TEXT: Final = Failed(
    "no_upstream_text", "no job before it in its flow has a result with a text, or it is pruned"
)
EMPTY_UPSTREAM_TEXT: Final = Failed("empty_text", "the text of the job before it is empty")


def _awaits_text(value: Any) -> bool:
    """Whether `UPSTREAM` is somewhere in a payload: a job may follow with texts of its own."""
    if isinstance(value, dict):
        return any(map(_awaits_text, value.values()))
    if isinstance(value, list):
        return any(map(_awaits_text, value))
    return isinstance(value, str) and value == UPSTREAM


def _with_text(value: Any, text: str) -> Any:
    """A payload with `UPSTREAM` replaced, wherever a whole string is it."""
    if isinstance(value, dict):
        return {name: _with_text(inner, text) for name, inner in value.items()}
    if isinstance(value, list):
        return [_with_text(inner, text) for inner in value]
    return text if value == UPSTREAM else value


def _run_isolated(handler: Handler, batch: Sequence[Job], context: Context) -> dict[UUID, Outcome]:
    """Run a handler; if it raises, each half by itself, so that one job cannot spoil the others."""

    def call(jobs: Sequence[Job]) -> Sequence[Outcome]:
        try:
            with on_behalf_of([job.id for job in jobs]):
                outcomes = handler(jobs, context)
            if len(outcomes) != len(jobs):
                raise RuntimeError("the handler returned another number of outcomes")  # noqa: TRY301
        except Exception as error:
            name = type(error).__name__
            log.error("a handler raised %s for a batch of %d", name, len(jobs))  # noqa: TRY400
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
