"""Finish: commits the outcomes of a batch, with retries, in one transaction fenced by lease and state.

`Finisher.finish` is the entry. The transaction (`write_outcomes`) writes effects, results, receipts and
new states, or nothing.
"""

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
from workers import failpoints
from workers.db import CONNECTION_ERRORS, session
from workers.failpoints import failpoint

Connection = psycopg.Connection[Any]
CurrentDocuments = frozenset[tuple[UUID, int]]
"""Documents with their current generation: effects of that generation may be written."""
log = logging.getLogger(__name__)

REFUSED: Final = "refused"
"""Outcome of an attempt whose lease was lost: the model was called, the effects are not written."""
_REROUTED: Final = "rerouted"
"""Outcome on the receipt of an attempt whose job moved to another pool."""
RETRY_S: Final = 1.0
"""Back-off before the transaction is repeated after a lost connection."""
LOCK_TIMEOUT_S: Final = 2.0
"""Longest wait of a batch for a document that another transaction has locked. The lease's row is locked
meanwhile, which blocks its heartbeat: never more than a quarter of a lease."""
SINGLE_JOB_LOCK_TIMEOUT_S: Final = 0.2
"""The same for each job, once the jobs are finished one by one."""
LOCKED_RETRY_AFTER_S: Final = 10.0
"""Delay of a job whose documents stayed locked."""

DOCUMENTS_LOCKED: Final = Failed(
    "documents_locked",
    "another transaction has locked its documents; it is retried",
    uncounted=True,
    retry_after=LOCKED_RETRY_AFTER_S,
)


@dataclass(slots=True)
class Finished:
    """End of each job's attempt: a state, `queued` for a retry, or `refused`."""

    states: dict[UUID, str] = field(default_factory=dict)
    failures: dict[UUID, Failed] = field(default_factory=dict)
    worked: set[UUID] = field(default_factory=set)
    """Jobs for which a model ran: only these count in the measured rate."""


@dataclass(frozen=True, slots=True)
class Finisher:
    """Commits outcomes for one process. Used by several threads.

    Args:
        pool: database connections.
        content: how the privacy class stores content.
        backoff_cap_s: longest wait before a retry.
        retry_for_s: how long to repeat the transaction while the database is unavailable.
        lease_s: duration of a lease.
    """

    pool: ConnectionPool[Connection]
    content: Content
    backoff_cap_s: float
    retry_for_s: float
    lease_s: float

    def finish(self, lease: Lease, outcomes: Mapping[UUID, Outcome]) -> Finished:
        """Commit the outcomes of a batch.

        Repeats while the database is unavailable: meanwhile, and for one lease after, no reconciler can
        requeue the jobs. Repeating is safe after a lost COMMIT reply too, since a committed finish has
        removed the lease from its jobs. If the batch cannot be stored, each job is finished separately.

        Raises:
            psycopg.Error: the database was unavailable for `retry_for_s`; the lease will expire.
        """
        return self._repeat(lease, outcomes, min(LOCK_TIMEOUT_S, self.lease_s / 4))

    def _repeat(
        self, lease: Lease, outcomes: Mapping[UUID, Outcome], lock_timeout_s: float
    ) -> Finished:
        deadline = time.monotonic() + self.retry_for_s
        while True:
            try:
                return self._finish_once(lease, outcomes, lock_timeout_s)
            except (psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled) as error:
                if len(outcomes) > 1:
                    return self._finish_each(lease, outcomes)
                if outcomes[next(iter(outcomes))] is not DOCUMENTS_LOCKED:
                    locked = dict.fromkeys(outcomes, DOCUMENTS_LOCKED)
                    return self._repeat(lease, locked, lock_timeout_s)
                self._back_off(error, deadline)
            except CONNECTION_ERRORS as error:
                self._back_off(error, deadline)
            except Exception as error:  # a result that cannot be encoded fails its own job
                if len(outcomes) > 1:
                    return self._finish_each(lease, outcomes)
                code = getattr(error, "sqlstate", None) or type(error).__name__
                log.error("result cannot be stored (%s); its job fails", code)  # noqa: TRY400
                failure = Failed("not_storable", f"the database refused its result ({code})")
                return self._finish_once(lease, dict.fromkeys(outcomes, failure), lock_timeout_s)

    def _finish_once(
        self, lease: Lease, outcomes: Mapping[UUID, Outcome], lock_timeout_s: float
    ) -> Finished:
        # A pipeline: statements without a result share one round trip.
        with session(self.pool, self.lease_s) as conn, conn.pipeline():
            conn.execute(
                "SELECT set_config('lock_timeout', %s, true)",
                [str(int(lock_timeout_s * 1000))],
                prepare=True,
            )
            finished = write_outcomes(
                conn, self.content, lease, outcomes, backoff_cap_s=self.backoff_cap_s
            )
            failpoint(failpoints.INSIDE_FINISH, lease, finished)
            failpoint(failpoints.BEFORE_FINISH_COMMIT, conn)
            conn.commit()
            failpoint(failpoints.AFTER_FINISH_COMMIT, conn)
        failpoint(failpoints.AFTER_FINISH, lease)
        return finished

    def _finish_each(self, lease: Lease, outcomes: Mapping[UUID, Outcome]) -> Finished:
        """Finish each job in a transaction of its own, so that one fails without the others."""
        finished = Finished()
        for job_id, outcome in outcomes.items():
            part = self._repeat(lease, {job_id: outcome}, SINGLE_JOB_LOCK_TIMEOUT_S)
            finished.states.update(part.states)
            finished.failures.update(part.failures)
            finished.worked.update(part.worked)
        return finished

    def _back_off(self, error: psycopg.Error, deadline: float) -> None:
        if time.monotonic() > deadline:
            raise error
        log.warning("finish failed (%s); retrying", type(error).__name__)
        time.sleep(RETRY_S)


def write_outcomes(
    conn: Connection,
    content: Content,
    lease: Lease,
    outcomes: Mapping[UUID, Outcome],
    *,
    backoff_cap_s: float,
) -> Finished:
    """Write the outcomes of a batch in the caller's transaction, fenced by lease and state.

    Args:
        conn: a connection in a transaction.
        content: how the privacy class stores content.
        lease: the lease and its jobs.
        outcomes: one for each job that was run; jobs without one keep running.
        backoff_cap_s: longest wait before a retry.
    """
    jobs = {job.id: job for job in lease.jobs if job.id in outcomes}
    owners = {job.owner for job in jobs.values()}
    content.begin(conn, owners)
    flows = any(job.root_id is not None for job in jobs.values())
    held = transitions.lock_held(conn, lease.id, list(jobs), owners=owners, flows=flows)
    current = _store_effects(conn, content, {i: jobs[i] for i in held}, outcomes)

    finished = Finished()
    settlements: list[Settlement] = []
    results: list[tuple[UUID, str, int, Mapping[str, Any]]] = []
    pools: dict[UUID, tuple[Pool, Mapping[str, str]]] = {}
    for job_id, job in jobs.items():
        outcome = outcomes[job_id]
        if outcome.served is not None and outcome.served.input_tokens:
            finished.worked.add(job_id)
        if job_id not in held:
            finished.states[job_id] = REFUSED
            continue
        if isinstance(outcome, Rerouted):
            finished.states[job_id] = State.QUEUED.value
            pools[job_id] = outcome.pool, outcome.tried_models
            continue
        if isinstance(outcome, Failed):
            settlement = _settle_failure(job, outcome, backoff_cap_s)
            finished.failures[job_id] = outcome
        else:
            settlement = _settle_success(job_id, outcome, current)
            if settlement.state is State.SUCCEEDED:
                result = _current_result(outcome, current)
                results.append((job_id, job.owner, job.result_ttl_s, result))
        settlements.append(settlement)
        finished.states[job_id] = settlement.state.value

    if lease.exclusive and REFUSED in finished.states.values():
        transitions.revert_crash(conn, lease.id, list(jobs))
    payloads.store_results(conn, content, results)
    dropped = [
        s.job_id
        for s in settlements
        if _drops_payload(jobs[s.job_id], s.state, sealed=content.sealed)
    ]
    payloads.drop_payloads(conn, content.privacy, dropped)
    payloads.drop_blobs(conn, content.privacy, [i for i in dropped if jobs[i].kind in WITH_FILES])
    receipts.insert(
        conn,
        content.privacy,
        lease.id,
        [_attempt(jobs[i], outcomes[i], finished.states[i]) for i in jobs],
    )
    transitions.reroute(conn, lease.id, pools)
    transitions.settle(conn, lease.id, settlements)
    return finished


def _drops_payload(job: ClaimedJob, state: State, *, sealed: bool) -> bool:
    """Whether a job's payload is deleted when it enters a state."""
    if state in (State.SUCCEEDED, State.SUPERSEDED):
        return sealed or not job.keep_payload
    # A dead interactive job, such as a search, is not replayed: its caller repeats it after the error.
    return state is State.DEAD and not job.keep_payload and job.latency == Latency.INTERACTIVE


def _store_effects(
    conn: Connection,
    content: Content,
    jobs: Mapping[UUID, ClaimedJob],
    outcomes: Mapping[UUID, Outcome],
) -> CurrentDocuments:
    """Store the effects of current documents; returns those documents."""
    effects = [
        (jobs[job_id].owner, effect)
        for job_id, outcome in outcomes.items()
        if job_id in jobs and isinstance(outcome, Succeeded)
        for effect in outcome.effects
    ]
    current = documents.lock_current(
        conn, content.privacy, ((e.document_id, e.generation) for _, e in effects)
    )
    documents.store(
        conn,
        content,
        [_document_write(content, owner, e) for owner, e in effects if _is_current(e, current)],
    )
    return current


def _is_current(effect: IndexDocument | ConfirmDocument, current: CurrentDocuments) -> bool:
    return (effect.document_id, effect.generation) in current


def _document_write(
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


def _settle_success(job_id: UUID, outcome: Succeeded, current: CurrentDocuments) -> Settlement:
    # A job none of whose documents is current wrote nothing: it is superseded.
    superseded = outcome.result.get("superseded", 0) + sum(
        not _is_current(e, current) for e in outcome.effects
    )
    if superseded and superseded == outcome.result.get("documents"):
        return Settlement(
            job_id, State.SUPERSEDED, "superseded", "its documents were enqueued again or deleted"
        )
    degraded = outcome.served is not None and outcome.served.degraded
    return Settlement(job_id, State.SUCCEEDED, degraded=degraded)


def _current_result(outcome: Succeeded, current: CurrentDocuments) -> dict[str, Any]:
    """The result, with effects that were not written counted as superseded."""
    result = dict(outcome.result)
    for effect in outcome.effects:
        if _is_current(effect, current):
            continue
        result["superseded"] += 1
        if isinstance(effect, ConfirmDocument):
            result["unchanged"] -= 1
        else:
            result["embedded"] -= 1
            result["chunks"] -= len(effect.chunks)
    return result


def _settle_failure(job: ClaimedJob, outcome: Failed, cap_s: float) -> Settlement:
    if outcome.uncounted:
        wait = max(outcome.retry_after or 0.0, _backoff_s(job.attempt, cap_s))
        return Settlement(job.id, State.QUEUED, outcome.code, outcome.message, wait, uncounted=True)
    if outcome.retryable and job.attempt < job.max_attempts:
        wait = _backoff_s(job.attempt, cap_s, outcome.retry_after)
        return Settlement(job.id, State.QUEUED, outcome.code, outcome.message, wait)
    return Settlement(job.id, State.DEAD, outcome.code, outcome.message)


def _attempt(job: ClaimedJob, outcome: Outcome, state: str) -> receipts.FinishedAttempt:
    served = outcome.served or Served(backend=None, model=None, locality=None)
    reason = served.reason
    if isinstance(outcome, Failed):
        reason = outcome.code
    if isinstance(outcome, Rerouted):
        reason = outcome.reason
    label = "retry" if state == State.QUEUED else state
    if isinstance(outcome, Rerouted) and state != REFUSED:
        label = _REROUTED
    return receipts.FinishedAttempt(job.id, job.attempt, label, job.started_at, reason, served)


def _backoff_s(attempt: int, cap_s: float, retry_after: float | None = None) -> float:
    """Exponential back-off with full jitter: uniform in 0 … min(cap, 2**attempt) seconds.

    Full jitter spreads simultaneous retries best (AWS Architecture Blog, "Exponential Backoff And
    Jitter", 2015). The wait is never shorter than `retry_after`.

    Args:
        attempt: number of the failed attempt, from 1.
        cap_s: longest wait.
        retry_after: seconds to wait, as the backend requested.
    """
    ceiling = min(cap_s, 2.0 ** min(attempt, 30))
    jittered = random.uniform(0, ceiling)  # noqa: S311 - spreading load, not guarding a secret
    return jittered if retry_after is None else max(retry_after, jittered)
