"""The finishing transaction: effects, results, receipts and new states, or nothing of it."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

import psycopg
from psycopg_pool import ConnectionPool

from models import documents, payloads, receipts, transitions
from models.claims import ClaimedJob, Lease
from models.content import Content
from models.states import State
from models.transitions import Settlement
from tasks.protocol import ConfirmDocument, Failed, IndexDocument, Outcome, Rerouted, Succeeded
from vestry.db.receipts import Served
from vestry.lanes import WITH_FILES, Latency, Pool
from workers.db import CONNECTION_ERRORS, session

Connection = psycopg.Connection[Any]

REFUSED = "refused"
"""The receipt's outcome where the lease was no longer held: the call was made, its effects not."""
REROUTED = "rerouted"
"""The receipt's outcome where the job went to another pool."""


CurrentDocuments = frozenset[tuple[UUID, int]]
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
    content.begin(conn, owners)
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
            pools[job_id] = outcome.pool, outcome.tried_models
            continue
        if isinstance(outcome, Failed):
            settlement = _failed(job, outcome, backoff_cap_s)
            done.failures[job_id] = outcome
        else:
            settlement = _succeeded(job_id, outcome, standing)
            if settlement.state is State.SUCCEEDED:
                result = _current_result(outcome, standing)
                results.append((job_id, job.owner, job.result_ttl_s, result))
        settlements.append(settlement)
        done.states[job_id] = settlement.state.value

    if lease.alone and REFUSED in done.states.values():
        transitions.revert_crash(conn, lease.id, list(jobs))
    payloads.store_results(conn, content, results)
    done_with = [
        s.job_id
        for s in settlements
        if _payload_is_dropped(jobs[s.job_id], s.state, sealed=content.sealed)
    ]
    payloads.drop_payloads(conn, content.privacy, done_with)
    payloads.drop_blobs(conn, content.privacy, [i for i in done_with if jobs[i].kind in WITH_FILES])
    receipts.insert(
        conn,
        content.privacy,
        lease.id,
        [_attempt(jobs[i], outcomes[i], done.states[i]) for i in jobs],
    )
    transitions.reroute(conn, lease.id, pools)
    transitions.settle(conn, lease.id, settlements)
    return done


def _payload_is_dropped(job: ClaimedJob, state: State, *, sealed: bool) -> bool:
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
) -> CurrentDocuments:
    """Store the effects that still stand; returns the documents they are of."""
    effects = [
        (jobs[job_id].owner, effect)
        for job_id, outcome in outcomes.items()
        if job_id in jobs and isinstance(outcome, Succeeded)
        for effect in outcome.effects
    ]
    standing = documents.lock_current(
        conn, content.privacy, ((e.document_id, e.generation) for _, e in effects)
    )
    documents.store(
        conn,
        content,
        [_write(content, owner, e) for owner, e in effects if _is_current(e, standing)],
    )
    return standing


def _is_current(effect: IndexDocument | ConfirmDocument, standing: CurrentDocuments) -> bool:
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


def _succeeded(job_id: UUID, outcome: Succeeded, standing: CurrentDocuments) -> Settlement:
    # A job all of whose documents moved on wrote nothing: it did not succeed, it was overtaken.
    overtaken = outcome.result.get("superseded", 0) + sum(
        not _is_current(e, standing) for e in outcome.effects
    )
    if overtaken and overtaken == outcome.result.get("documents"):
        return Settlement(
            job_id, State.SUPERSEDED, "superseded", "its documents were enqueued again or deleted"
        )
    degraded = outcome.served is not None and outcome.served.degraded
    return Settlement(job_id, State.SUCCEEDED, degraded=degraded)


def _current_result(outcome: Succeeded, standing: CurrentDocuments) -> dict[str, Any]:
    """The result with effects that were refused counted as superseded."""
    result = dict(outcome.result)
    for effect in outcome.effects:
        if _is_current(effect, standing):
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
        wait = max(outcome.retry_after or 0.0, backoff_s(job.attempt, cap_s))
        return Settlement(job.id, State.QUEUED, outcome.code, outcome.message, wait, uncounted=True)
    if outcome.retryable and job.attempt < job.max_attempts:
        wait = backoff_s(job.attempt, cap_s, outcome.retry_after)
        return Settlement(job.id, State.QUEUED, outcome.code, outcome.message, wait)
    return Settlement(job.id, State.DEAD, outcome.code, outcome.message)


def _attempt(job: ClaimedJob, outcome: Outcome, state: str) -> receipts.Attempt:
    served = outcome.served or Served(backend=None, model=None, locality=None)
    reason = served.reason
    if isinstance(outcome, Failed):
        reason = outcome.code
    if isinstance(outcome, Rerouted):
        reason = outcome.reason
    label = "retry" if state == State.QUEUED else state
    if isinstance(outcome, Rerouted) and state != REFUSED:
        label = REROUTED
    return receipts.Attempt(job.id, job.attempt, label, job.started_at, reason, served)


# How long a failed attempt waits before the next.


def backoff_s(attempt: int, cap_s: float, retry_after: float | None = None) -> float:
    """Exponential backoff with full jitter: uniform in 0 … min(cap, 2**attempt) seconds.

    Full jitter spreads a crowd of retries best (AWS Architecture Blog, "Exponential Backoff And
    Jitter", 2015). What the backend asked for is never undercut.

    Args:
        attempt: which attempt just failed, from 1.
        cap_s: longest wait.
        retry_after: seconds the backend asked for.
    """
    ceiling = min(cap_s, 2.0 ** min(attempt, 30))
    jittered = random.uniform(0, ceiling)  # noqa: S311 - spreading load, not guarding a secret
    return jittered if retry_after is None else max(retry_after, jittered)


# Gets a batch's outcomes committed: repeats what is safe to repeat, isolates what cannot be
# stored.

log = logging.getLogger(__name__)

RETRY_S: Final = 1.0
"""Pause before a finishing transaction is tried again after the database went away."""
LOCK_TIMEOUT_S: Final = 2.0
"""Longest that a batch waits for a document that somebody's open transaction holds. The lease's row
is locked meanwhile, and its heartbeat with it: never more than a quarter of a lease."""
SINGLE_JOB_LOCK_TIMEOUT_S: Final = 0.2
"""The same for each job, once they are finished one by one."""
LOCKED_RETRY_AFTER_S: Final = 10.0
"""How long a job waits that could not have its documents."""

DOCUMENTS_LOCKED = Failed(
    "documents_locked",
    "another transaction holds its documents; it is tried again",
    uncounted=True,
    retry_after=LOCKED_RETRY_AFTER_S,
)


@dataclass(frozen=True, slots=True)
class Finisher:
    """Finishing transactions of one process.

    Args:
        pool: database connections.
        content: how the privacy class stores content.
        backoff_cap_s: longest wait before a retry.
        patience_s: how long to go on trying while the database is away.
        lease_s: the lease.
    """

    pool: ConnectionPool[psycopg.Connection[Any]]
    content: Content
    backoff_cap_s: float
    retry_for_s: float
    lease_s: float

    def finish(self, lease: Lease, outcomes: Mapping[UUID, Outcome]) -> Finished:
        """Commit what a batch came to.

        While the database is away this tries again and again: the lease cannot be taken away in that
        time, and for one lease after. Repeating is safe also when the answer to a COMMIT was lost,
        since a finish that did commit has taken the token from the jobs.

        Raises:
            psycopg.Error: the database stayed away for `patience_s`; the lease will expire.
        """
        return self._until_done(lease, outcomes, min(LOCK_TIMEOUT_S, self.lease_s / 4))

    def _until_done(
        self, lease: Lease, outcomes: Mapping[UUID, Outcome], lock_wait_s: float
    ) -> Finished:
        give_up = time.monotonic() + self.retry_for_s
        while True:
            try:
                return self._once(lease, outcomes, lock_wait_s)
            except (psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled) as error:
                if len(outcomes) > 1:
                    return self._one_by_one(lease, outcomes)
                if outcomes[next(iter(outcomes))] is not DOCUMENTS_LOCKED:
                    return self._until_done(
                        lease, dict.fromkeys(outcomes, DOCUMENTS_LOCKED), lock_wait_s
                    )
                self._pause(error, give_up)
            except CONNECTION_ERRORS as error:
                self._pause(error, give_up)
            except (
                Exception
            ) as error:  # a result that cannot even be encoded is the job's own fault
                if len(outcomes) > 1:
                    return self._one_by_one(lease, outcomes)
                code = getattr(error, "sqlstate", None) or type(error).__name__
                log.error("a result cannot be stored (%s)", code)  # noqa: TRY400
                failure = Failed("not_storable", f"the database refused what came of it ({code})")
                return self._once(lease, dict.fromkeys(outcomes, failure), lock_wait_s)

    def _once(self, lease: Lease, outcomes: Mapping[UUID, Outcome], lock_wait_s: float) -> Finished:
        # A pipeline: statements whose answers nobody waits for share a round trip.
        with session(self.pool, self.lease_s) as conn, conn.pipeline():
            conn.execute(
                "SELECT set_config('lock_timeout', %s, true)",
                [str(int(lock_wait_s * 1000))],
                prepare=True,
            )
            done = finish(conn, self.content, lease, outcomes, backoff_cap_s=self.backoff_cap_s)
            conn.commit()
            return done

    def _one_by_one(self, lease: Lease, outcomes: Mapping[UUID, Outcome]) -> Finished:
        """Something of the batch cannot be stored, or not now: find out what, and store the rest."""
        done = Finished()
        for job_id, outcome in outcomes.items():
            part = self._until_done(lease, {job_id: outcome}, SINGLE_JOB_LOCK_TIMEOUT_S)
            done.states.update(part.states)
            done.failures.update(part.failures)
            done.worked.update(part.worked)
        return done

    def _pause(self, error: psycopg.Error, give_up: float) -> None:
        log.warning("finish waits for the database (%s)", type(error).__name__)
        if time.monotonic() > give_up:
            raise error
        time.sleep(RETRY_S)
