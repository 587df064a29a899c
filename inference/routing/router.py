"""The Router of one process: calls the best model of its own pool, and says where else a job belongs.

Whatever it does instead of what the policy intended is told: by the answer, for the receipt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar

from inference.catalogue.schema import BackendEntry
from inference.errors import (
    BackendUnavailable,
    BadAnswer,
    CallCancelled,
    InferenceError,
    LocalRateLimit,
    ModelMissing,
    NoAdequateModel,
    NoBackendAvailable,
    ProbeInProgress,
    RateLimited,
    SkippedModel,
    Unauthorised,
)
from inference.routing.model_registry import ModelRegistry
from inference.routing.policy import (
    Budget,
    Candidate,
    Candidates,
    Health,
    RoutingPolicy,
    RoutingRequest,
)
from vestry.lanes import Pool, Privacy

T = TypeVar("T")

FALLBACK_ERRORS: Final = (RateLimited, BackendUnavailable, Unauthorised, ModelMissing, BadAnswer)
"""Errors that say something of the backend and nothing of the request: the next one may do."""
LIMITED: Final = (RateLimited.code, LocalRateLimit.code)


class CallGuard(Protocol):
    """What all workers together know of the backends. See `inference.routing.backend_guard`."""

    def health(self) -> Health:
        """Which backends cannot be called now, and why."""
        ...

    def budget(self) -> Budget:
        """What clouds may still cost."""
        ...

    def before_call(self, backend: BackendEntry) -> bool:
        """Ask to call a backend now; True where the call is to tell whether it is back.

        Raises:
            StillAway: not now.
        """
        ...

    def after_call(self, backend: BackendEntry, error: InferenceError | None) -> None:
        """The call is over, well or with an error."""
        ...

    def wait_s(self, backend: BackendEntry) -> float:
        """Seconds until a backend that cannot be called now may be called again."""
        ...


class RerouteRequired(Exception):
    """The request belongs into another pool.

    Attributes:
        pool: that one.
        reason: why.
        passed: models tried so far, by name, each with the reason why it did not serve.
        error: of the last that was tried here.
    """

    def __init__(
        self,
        pool: Pool,
        reason: str,
        passed: Mapping[str, str] | None = None,
        error: InferenceError | None = None,
    ) -> None:
        super().__init__(f"{pool}: {reason}")
        self.pool = pool
        self.reason = reason
        self.tried_models = dict(passed or {})
        self.error = error


@dataclass(frozen=True, slots=True)
class RoutedResult(Generic[T]):
    """What came of a call.

    Attributes:
        value: what the model returned.
        served: the model that returned it.
        intended: the one that would have, had all been well.
        reason: why it is another; None where it is not.
        policy: version of the policy.
    """

    value: T
    served: Candidate
    intended: Candidate
    reason: str | None
    policy: str

    @property
    def degraded(self) -> bool:
        """Whether another model than the intended one served it."""
        return self.reason is not None


class Router:
    """Serves requests with the models of one pool.

    Args:
        policy: which models may serve what.
        pool: the pool of this process.
        fleet: its models.
        gate: what all workers know of the backends.
    """

    def __init__(
        self, policy: RoutingPolicy, pool: Pool, fleet: ModelRegistry, gate: CallGuard
    ) -> None:
        self.policy = policy
        self._pool = pool
        self._registry = fleet
        self._guard = gate

    def serve(
        self, request: RoutingRequest, call: Callable[[Any, Candidate], T]
    ) -> RoutedResult[T]:
        """Have a request served by the best model that may be called now.

        Args:
            request: kind, task, privacy, latency, tier and quality.
            call: given a loaded model of the kind and its candidate; may be called again with
                another one, after an error of `TRY_ANOTHER`.

        Raises:
            Elsewhere: the next to be tried is in another pool.
            NoAdequateModel: there is none, whatever the circumstances.
            Waits: there is none now; `retry_after` says when to ask again. No attempt is spent.
            InferenceError: what the model raised of the request itself.
        """
        tried: dict[str, InferenceError] = {
            name: SkippedModel(reason) for name, reason in request.tried_models
        }
        while True:
            found = self._candidates(request)
            if found.intended is None:
                raise NoAdequateModel(_none(request))
            candidate = next((c for c in found.open if c.model.name not in tried), None)
            if candidate is None:
                raise self._no_candidate_error(found, tried)
            failed = tried.get(found.intended.model.name)
            reason = found.why_not_intended(candidate) if failed is None else _reason(failed)
            if candidate.pool is not self._pool:
                passed = {name: _reason(error) for name, error in tried.items()}
                last = next(reversed(_met(tried)), None)
                raise RerouteRequired(candidate.pool, reason or "first_choice", passed, last)
            try:
                value = self._call(candidate, call)
            except FALLBACK_ERRORS as error:
                tried[candidate.model.name] = error
                continue
            return RoutedResult(value, candidate, found.intended, reason, self.policy.version)

    def _candidates(self, wish: RoutingRequest) -> Candidates:
        return self.policy.candidates(wish, self._guard.health(), self._guard.budget())

    def _call(self, candidate: Candidate, call: Callable[[Any, Candidate], T]) -> T:
        probing = self._guard.before_call(candidate.backend)
        try:
            # A server's model is warmed up by calling the server: that, too, tells how it is.
            value = call(self._registry.model(candidate.model), candidate)
        except InferenceError as error:
            error.served_by = candidate
            self._guard.after_call(candidate.backend, error)
            if probing and isinstance(error, BackendUnavailable):
                raise ProbeInProgress(retry_after=error.retry_after) from None
            raise
        except BaseException:
            self._guard.after_call(candidate.backend, CallCancelled())
            raise
        self._guard.after_call(candidate.backend, None)
        return value

    def _no_candidate_error(
        self, found: Candidates, tried: dict[str, InferenceError]
    ) -> InferenceError:
        """The error for a request that nothing serves now.

        What was tried and failed counts as an attempt; what may not even be tried does not, nor does
        trying whether a backend is back.
        """
        intended = found.intended
        assert intended is not None  # noqa: S101 - the caller looked
        error = tried.get(intended.model.name)
        if isinstance(error, SkippedModel) and error.reason not in LIMITED:
            return next(reversed(_met(tried)), error)
        if error is not None and not isinstance(
            error, (RateLimited, ProbeInProgress, SkippedModel)
        ):
            return error
        told_s = (error.retry_after if error is not None else None) or 0.0
        wait_s = max(told_s, self._guard.wait_s(intended.backend))
        reason = found.away.get(intended.model.name) or (_reason(error) if error else "unavailable")
        return NoBackendAvailable(reason, retry_after=wait_s)


def _reason(error: InferenceError) -> str:
    return error.reason if isinstance(error, SkippedModel) else error.code


def _met(tried: Mapping[str, InferenceError]) -> list[InferenceError]:
    """The errors of this process, of those that were tried."""
    return [error for error in tried.values() if not isinstance(error, SkippedModel)]


def _none(wish: RoutingRequest) -> str:
    # Task and model are the caller's words, and stay out of what is stored in the clear.
    where = " on our own machines" if wish.privacy != Privacy.SHAREABLE else ""
    if wish.model is not None:
        return f"the model asked for is not enabled{where} for this kind and task of job"
    return f"no model that is enabled{where} is good enough for this task; see `vestry doctor`"
