"""Receipts: the intended and the actual model of each attempt, and the reason if they differ."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, NamedTuple
from uuid import UUID

from vestry.db.operations import Operation, Query
from vestry.errors import UnknownJob

# The columns from served_backend on are the fields of `Served`, in their order.
_RECEIPTS: Final = """
SELECT r.attempt, r.outcome, r.started_at, r.finished_at,
       r.served_backend, r.served_model, r.locality, r.input_tokens, r.output_tokens,
       r.intended_backend, r.intended_model, r.degraded, r.reason, r.cost, r.policy_version
FROM vestry.jobs j LEFT JOIN vestry.receipts r ON r.job_id = j.id
WHERE j.id = %b::uuid ORDER BY r.finished_at, r.attempt"""


class ModelRef(NamedTuple):
    """A model and its backend; both None if no model was called."""

    backend: str | None
    model: str | None


@dataclass(frozen=True, slots=True)
class Served:
    """The model call behind one attempt, as its handler reports it.

    Attributes:
        backend: backend of the model that served the job; None if none was called.
        model: that model.
        locality: `local` or `cloud`: where the content was sent; None if it was not sent.
        input_tokens: tokens read by the model.
        output_tokens: tokens written by the model.
        intended_backend: backend of the model that the routing policy intended; None if it served.
        intended_model: that model.
        degraded: another model than the intended one served the job.
        reason: why, as one of the policy's reasons, such as `rate_limited`.
        cost: in US dollars; None if the model has no price.
        policy: version of the routing policy that decided.
    """

    backend: str | None
    model: str | None
    locality: str | None = "local"
    input_tokens: int | None = None
    output_tokens: int | None = None
    intended_backend: str | None = None
    intended_model: str | None = None
    degraded: bool = False
    reason: str | None = None
    cost: Decimal | None = None
    policy: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt(Served):
    """One attempt of a job, as stored. `intended_backend` and `intended_model` are always set.

    Attributes:
        attempt: its number, which a job keeps when it is rerouted or waits for a backend.
        outcome: the job's state after it; `retry`; `rerouted`; `refused` if the lease was no longer
            held when it finished; `lost` if its process ended.
        reason: error code of a failed attempt, else as in `Served`.
        started_at: when the attempt began.
        finished_at: when its receipt was written.
    """

    attempt: int
    outcome: str
    started_at: dt.datetime | None
    finished_at: dt.datetime

    @property
    def intended(self) -> ModelRef:
        """The model that the routing policy intended."""
        return ModelRef(self.intended_backend, self.intended_model)

    @property
    def served(self) -> ModelRef:
        """The model that served the job."""
        return ModelRef(self.backend, self.model)


def receipts(job: UUID) -> Operation[list[Receipt]]:
    """The receipts of a job, in the order of its attempts.

    Raises:
        UnknownJob: no job has this id.
    """
    rows = yield Query(_RECEIPTS, (job,))
    if not rows:
        raise UnknownJob
    return [
        Receipt(
            *call,
            attempt=attempt,
            outcome=outcome,
            started_at=started_at,
            finished_at=finished_at,
        )
        for attempt, outcome, started_at, finished_at, *call in rows
        if outcome is not None
    ]
