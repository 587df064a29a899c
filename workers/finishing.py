"""The finishing transaction: effects, results, receipts and new states, or nothing of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import psycopg

from models import documents, payloads, receipts, transitions
from models.claims import ClaimedJob, Lease
from models.content import Content
from models.states import State
from models.transitions import Settlement
from tasks.protocol import (
    ConfirmDocument,
    Failed,
    IndexDocument,
    Outcome,
    Rerouted,
    Served,
    Succeeded,
)
from vestry.lanes import WITH_FILES, Latency, Pool
from workers import backoff

Connection = psycopg.Connection[Any]

REFUSED = "refused"
"""The receipt's outcome where the lease was no longer held: the call was made, its effects not."""
REROUTED = "rerouted"
"""The receipt's outcome where the job went to another pool."""


Standing = frozenset[tuple[UUID, int]]
"""Documents, with the generation, whose effects may be written."""


@dataclass(slots=True)
class Finished:
    """How each job's attempt ended: a state, `queued` for a retry, or `refused`."""

    states: dict[UUID, str] = field(default_factory=dict)
    failures: dict[UUID, Failed] = field(default_factory=dict)
    worked: set[UUID] = field(default_factory=set)
    """Jobs for which a model really ran: only those tell how fast it goes."""


def finish(
    conn: Connection,
    content: Content,
    lease: Lease,
    outcomes: Mapping[UUID, Outcome],
    *,
    backoff_cap_s: float,
) -> Finished:
    """Write what a batch came to, in the caller's transaction, fenced by token and state.

    Args:
        conn: a connection in a transaction.
        content: how this privacy class stores content.
        lease: the token and its jobs.
        outcomes: one per job that was run; jobs without one keep running.
        backoff_cap_s: longest wait before a retry.
    """
    jobs = {job.id: job for job in lease.jobs if job.id in outcomes}
    owners = {job.owner for job in jobs.values()}
    content.enter(conn, owners)
    flows = any(job.root_id is not None for job in jobs.values())
    held = transitions.lock_held(conn, lease.id, list(jobs), owners=owners, flows=flows)
    standing = _store_effects(conn, content, {i: jobs[i] for i in held}, outcomes)

    done = Finished()
    settlements: list[Settlement] = []
    results: list[tuple[UUID, str, int, Mapping[str, Any]]] = []
    pools: dict[UUID, tuple[Pool, Mapping[str, str]]] = {}
    for job_id, job in jobs.items():
        outcome = outcomes[job_id]
        if outcome.served is not None and outcome.served.input_tokens:
            done.worked.add(job_id)
        if job_id not in held:
            done.states[job_id] = REFUSED
            continue
        if isinstance(outcome, Rerouted):
            done.states[job_id] = State.QUEUED.value
            pools[job_id] = outcome.pool, outcome.passed
            continue
        if isinstance(outcome, Failed):
            settlement = _failed(job, outcome, backoff_cap_s)
            done.failures[job_id] = outcome
        else:
            settlement = _succeeded(job_id, outcome, standing)
            if settlement.state is State.SUCCEEDED:
                result = _standing_result(outcome, standing)
                results.append((job_id, job.owner, job.result_ttl_s, result))
        settlements.append(settlement)
        done.states[job_id] = settlement.state.value

    if lease.alone and REFUSED in done.states.values():
        transitions.exonerate(conn, lease.id, list(jobs))
    payloads.store_results(conn, content, results)
    done_with = [
        s.job_id for s in settlements if _done_with(jobs[s.job_id], s.state, sealed=content.sealed)
    ]
    payloads.drop_payloads(conn, content.privacy, done_with)
    payloads.drop_blobs(conn, content.privacy, [i for i in done_with if jobs[i].kind in WITH_FILES])
    receipts.keep(
        conn,
        content.privacy,
        lease.id,
        [_receipt(jobs[i], outcomes[i], done.states[i]) for i in jobs],
    )
    transitions.reroute(conn, lease.id, pools)
    transitions.settle(conn, lease.id, settlements)
    return done


def _done_with(job: ClaimedJob, state: State, *, sealed: bool) -> bool:
    """Whether a job's payload is to go now that the job is in this state."""
    if state in (State.SUCCEEDED, State.SUPERSEDED):
        return sealed or not job.keep_payload
    # Nobody replays what somebody waited for, such as a search: they heard of it and ask again.
    return state is State.DEAD and not job.keep_payload and job.latency == Latency.INTERACTIVE


def _store_effects(
    conn: Connection,
    content: Content,
    jobs: Mapping[UUID, ClaimedJob],
    outcomes: Mapping[UUID, Outcome],
) -> Standing:
    """Store the effects that still stand; returns the documents they are of."""
    effects = [
        (jobs[job_id].owner, effect)
        for job_id, outcome in outcomes.items()
        if job_id in jobs and isinstance(outcome, Succeeded)
        for effect in outcome.effects
    ]
    standing = documents.lock_standing(
        conn, content.privacy, ((e.document_id, e.generation) for _, e in effects)
    )
    documents.store(
        conn,
        content,
        [_write(content, owner, e) for owner, e in effects if _stands(e, standing)],
    )
    return standing


def _stands(effect: IndexDocument | ConfirmDocument, standing: Standing) -> bool:
    return (effect.document_id, effect.generation) in standing


def _write(
    content: Content, owner: str, effect: IndexDocument | ConfirmDocument
) -> documents.DocumentWrite:
    if isinstance(effect, ConfirmDocument):
        return documents.DocumentWrite(effect.document_id, effect.generation, owner)
    digest = content.digest(owner)
    return documents.DocumentWrite(
        effect.document_id,
        effect.generation,
        owner,
        source=effect.source,
        space_id=effect.space_id,
        content_hash=effect.content_hash,
        detail=effect.detail,
        chunks=[
            documents.ChunkRow(
                chunk.ordinal,
                chunk.start,
                chunk.end,
                digest("chunk", chunk.text.encode()),
                chunk.text if effect.keep_text else None,
                "[" + ",".join(map(str, chunk.vector)) + "]",
            )
            for chunk in effect.chunks
        ],
    )


def _succeeded(job_id: UUID, outcome: Succeeded, standing: Standing) -> Settlement:
    # A job all of whose documents moved on wrote nothing: it did not succeed, it was overtaken.
    overtaken = outcome.result.get("superseded", 0) + sum(
        not _stands(e, standing) for e in outcome.effects
    )
    if overtaken and overtaken == outcome.result.get("documents"):
        return Settlement(
            job_id, State.SUPERSEDED, "superseded", "its documents were enqueued again or deleted"
        )
    degraded = outcome.served is not None and outcome.served.degraded
    return Settlement(job_id, State.SUCCEEDED, degraded=degraded)


def _standing_result(outcome: Succeeded, standing: Standing) -> dict[str, Any]:
    """The result with effects that were refused counted as superseded."""
    result = dict(outcome.result)
    for effect in outcome.effects:
        if _stands(effect, standing):
            continue
        result["superseded"] += 1
        if isinstance(effect, ConfirmDocument):
            result["unchanged"] -= 1
        else:
            result["embedded"] -= 1
            result["chunks"] -= len(effect.chunks)
    return result


def _failed(job: ClaimedJob, outcome: Failed, cap_s: float) -> Settlement:
    if outcome.uncounted:
        wait = max(outcome.retry_after or 0.0, backoff.delay_s(job.attempt, cap_s))
        return Settlement(job.id, State.QUEUED, outcome.code, outcome.message, wait, uncounted=True)
    if outcome.retryable and job.attempt < job.max_attempts:
        wait = backoff.delay_s(job.attempt, cap_s, outcome.retry_after)
        return Settlement(job.id, State.QUEUED, outcome.code, outcome.message, wait)
    return Settlement(job.id, State.DEAD, outcome.code, outcome.message)


def _receipt(job: ClaimedJob, outcome: Outcome, state: str) -> receipts.Receipt:
    served = outcome.served or Served(backend=None, model=None, locality=None)
    reason = served.reason
    if isinstance(outcome, Failed):
        reason = outcome.code
    if isinstance(outcome, Rerouted):
        reason = outcome.reason
    told = "retry" if state == State.QUEUED else state
    return receipts.Receipt(
        job_id=job.id,
        attempt=job.attempt,
        outcome=REROUTED if isinstance(outcome, Rerouted) and state != REFUSED else told,
        started_at=job.started_at,
        reason=reason,
        backend=served.backend,
        model=served.model,
        locality=served.locality,
        input_tokens=served.input_tokens,
        output_tokens=served.output_tokens,
        intended_backend=served.intended_backend,
        intended_model=served.intended_model,
        degraded=served.degraded,
        policy=served.policy,
        cost=served.cost,
    )
