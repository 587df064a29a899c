"""Receipts: what was meant to serve each attempt of a job, what did, and why they differ. No I/O."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from decimal import Decimal
from typing import Final
from uuid import UUID

from vestry.errors import UnknownJob
from vestry.operations import Operation, Query

_RECEIPTS: Final = """
SELECT j.id, r.attempt, r.outcome, r.reason, r.intended_backend, r.intended_model, r.served_backend,
       r.served_model, r.locality, r.degraded, r.policy_version, r.input_tokens, r.output_tokens,
       r.cost, r.started_at, r.finished_at
FROM vestry.jobs j LEFT JOIN vestry.receipts r ON r.job_id = j.id
WHERE j.id = %b::uuid ORDER BY r.finished_at, r.attempt"""


@dataclass(frozen=True, slots=True)
class Served:
    """A model and the backend it runs on; None of both where nothing was called."""

    backend: str | None
    model: str | None


@dataclass(frozen=True, slots=True)
class Receipt:
    """One attempt of a job.

    Attributes:
        attempt: its number; a job that goes to another pool, or waits for a backend, keeps it.
        outcome: the job's state after it, `retry`, `rerouted`, `refused` where its effects came too
            late, `lost` where its process ended.
        reason: why it failed, or why another model than the intended one served it.
        intended: what would have served it had all been well.
        served: what did.
        locality: `local` or `cloud`: where the content went; None where it went nowhere.
        degraded: another model than the intended one served it.
        policy: version of the routing policy that decided.
        input_tokens: read by the model.
        output_tokens: written by it.
        cost: in US dollars; None where it has no price.
        started_at: when the attempt began.
        finished_at: when it was settled.
    """

    attempt: int
    outcome: str
    reason: str | None
    intended: Served
    served: Served
    locality: str | None
    degraded: bool
    policy: str | None
    input_tokens: int | None
    output_tokens: int | None
    cost: Decimal | None
    started_at: dt.datetime | None
    finished_at: dt.datetime


def receipts(job: UUID) -> Operation[list[Receipt]]:
    """The receipts of a job, in the order of its attempts.

    Raises:
        UnknownJob: there is no such job.
    """
    rows = yield Query(_RECEIPTS, (job,))
    if not rows:
        raise UnknownJob
    return [
        Receipt(
            attempt, outcome, reason, Served(*intended), Served(*served), locality, degraded, policy,
            tokens_in, tokens_out, cost, started_at, finished_at,
        )
        for _, attempt, outcome, reason, *intended_served, locality, degraded, policy, tokens_in,
            tokens_out, cost, started_at, finished_at in rows
        if outcome is not None
        for intended, served in [(intended_served[:2], intended_served[2:])]
    ]  # fmt: skip
