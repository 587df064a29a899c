"""From what the Router says to what a job's outcome and receipt say."""

from __future__ import annotations

from typing import Any

from inference.errors import InferenceError, NoBackendAvailable
from inference.routing.policy import Candidate
from inference.routing.router import RerouteRequired, RoutedResult
from tasks.protocol import Failed, Rerouted
from vestry.db.receipts import Served


def served_of(
    answer: RoutedResult[Any], input_tokens: int | None = None, output_tokens: int | None = None
) -> Served:
    """What the receipt says of a call that was answered."""
    model, intended = answer.served.model, answer.intended
    price = model.price
    return Served(
        backend=model.backend,
        model=model.name,
        locality=answer.served.locality,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        intended_backend=intended.model.backend,
        intended_model=intended.model.name,
        degraded=answer.degraded,
        reason=answer.reason,
        cost=None if price is None else price.of(input_tokens, output_tokens),
        policy=answer.policy,
    )


def outcome_of_error(
    error: InferenceError | RerouteRequired, subject: str | None = None
) -> Failed | Rerouted:
    """A request that was not answered, as its job's outcome.

    Args:
        error: what the Router raised.
        subject: what in the job it is about, such as `text 3`; no content.
    """
    if isinstance(error, RerouteRequired):
        served = None if error.error is None else _paid(error.error)
        return Rerouted(error.pool, error.reason, served, error.tried_models)
    return failure_of(error, subject)


def failure_of(error: InferenceError, subject: str | None = None) -> Failed:
    """An error as a job's failure; see `outcome_of_error`."""
    message = str(error) if subject is None else f"{subject}: {error}"
    return Failed(
        error.code,
        message,
        retryable=error.retryable,
        retry_after=error.retry_after,
        uncounted=isinstance(error, NoBackendAvailable),
        served=_paid(error),
    )


def _paid(error: InferenceError) -> Served | None:
    """What the receipt says of calls that were answered, though not so that it served the job."""
    candidate: Candidate | None = error.served_by
    if candidate is None or error.usage is None:
        return None
    model, price = candidate.model, candidate.model.price
    return Served(
        backend=model.backend,
        model=model.name,
        locality=candidate.locality,
        input_tokens=error.usage[0],
        output_tokens=error.usage[1],
        cost=None if price is None else price.of(*error.usage),
    )


def cancelled_outcome() -> Failed:
    """For a job whose effects would be refused anyway."""
    return Failed("abandoned", "the job was taken away while it ran", retryable=True)
