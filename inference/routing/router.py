"""The Router of one process: calls the best model of its pool, or names the pool a job belongs in.

Any deviation from the policy's first choice is part of the result, for the receipt.
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
"""Errors that are about the backend and not about the request: the next candidate is called."""
RATE_LIMIT_CODES: Final = (RateLimited.code, LocalRateLimit.code)


class CallGuard(Protocol):
    """Health of the backends, shared by all workers. See `inference.routing.backend_guard`."""

    def health(self) -> Health:
        """The backends that cannot be called now, and why."""
        ...

    def budget(self) -> Budget:
        """The remaining budget for clouds."""
        ...

    def before_call(self, backend: BackendEntry) -> bool:
        """Circuit-breaker check before a call. Returns True if this call is the half-open probe.

        Raises:
            ProbeInProgress: another call is probing the backend.
        """
        ...

    def after_call(self, backend: BackendEntry, error: InferenceError | None) -> None:
        """Record the end of a call, with its error if it failed."""
        ...

    def wait_s(self, backend: BackendEntry) -> float:
        """Seconds until a backend that cannot be called now may be called again."""
        ...


class RerouteRequired(Exception):
    """The request belongs in another pool.

    Attributes:
        pool: the other pool.
        reason: why the first choice does not serve.
        tried_models: models tried so far, by name, each with why it did not serve.
        error: of the last model that was called here.
    """

    def __init__(
        self,
        pool: Pool,
        reason: str,
        tried_models: Mapping[str, str] | None = None,
        error: InferenceError | None = None,
    ) -> None:
        super().__init__(f"{pool}: {reason}")
        self.pool = pool
        self.reason = reason
        self.tried_models = dict(tried_models or {})
        self.error = error


@dataclass(frozen=True, slots=True)
class RoutedResult(Generic[T]):
    """The result of a call, with the routing decision.

    Attributes:
        value: returned by the model.
        served: the model that was called.
        intended: the policy's first choice.
        reason: why `served` is another model; None if it is not.
        policy: version of the policy.
    """

    value: T
    served: Candidate
    intended: Candidate
    reason: str | None
    policy: str

    @property
    def degraded(self) -> bool:
        """Whether another model than the intended one served."""
        return self.reason is not None


class Router:
    """Serves requests with the models of one pool.

    Args:
        policy: the models that may serve a request.
        pool: this process's pool.
        registry: the loaded models.
        guard: health of the backends.
    """

    def __init__(
        self, policy: RoutingPolicy, pool: Pool, registry: ModelRegistry, guard: CallGuard
    ) -> None:
        self.policy = policy
        self._pool = pool
        self._registry = registry
        self._guard = guard

    def serve(
        self, request: RoutingRequest, call: Callable[[Any, Candidate], T]
    ) -> RoutedResult[T]:
        """Serve a request with the best model that may be called now.

        Args:
            request: kind, task, privacy, latency, tier and quality.
            call: called with a loaded model of the kind and its candidate; called again with the next
                candidate after one of `FALLBACK_ERRORS`.

        Raises:
            RerouteRequired: the next candidate is in another pool.
            NoAdequateModel: no model can serve it at any time.
            NoBackendAvailable: no model can serve it now, but after `retry_after`; no attempt is spent.
            InferenceError: raised by the model for the request itself.
        """
        tried: dict[str, InferenceError] = {
            name: SkippedModel(reason) for name, reason in request.tried_models
        }
        while True:
            candidates = self._candidates(request)
            intended = candidates.intended
            if intended is None:
                raise NoAdequateModel(_no_model_message(request))
            candidate = next((c for c in candidates.available if c.model.name not in tried), None)
            if candidate is None:
                raise self._no_candidate_error(candidates, intended, tried)
            failure = tried.get(intended.model.name)
            reason = candidates.why_not_intended(candidate) if failure is None else _reason(failure)
            if candidate.pool is not self._pool:
                reasons = {name: _reason(error) for name, error in tried.items()}
                last = next(reversed(_raised_here(tried)), None)
                raise RerouteRequired(candidate.pool, reason or "first_choice", reasons, last)
            try:
                value = self._call(candidate, call)
            except FALLBACK_ERRORS as error:
                tried[candidate.model.name] = error
                continue
            return RoutedResult(value, candidate, intended, reason, self.policy.version)

    def _candidates(self, request: RoutingRequest) -> Candidates:
        return self.policy.candidates(request, self._guard.health(), self._guard.budget())

    def _call(self, candidate: Candidate, call: Callable[[Any, Candidate], T]) -> T:
        is_probe = self._guard.before_call(candidate.backend)
        try:
            # Inside the guard: warming up a server's model calls the server.
            value = call(self._registry.model(candidate.model), candidate)
        except InferenceError as error:
            error.served_by = candidate
            self._guard.after_call(candidate.backend, error)
            if is_probe and isinstance(error, BackendUnavailable):
                raise ProbeInProgress(retry_after=error.retry_after) from None
            raise
        except BaseException:
            self._guard.after_call(candidate.backend, CallCancelled())
            raise
        self._guard.after_call(candidate.backend, None)
        return value

    def _no_candidate_error(
        self, candidates: Candidates, intended: Candidate, tried: dict[str, InferenceError]
    ) -> InferenceError:
        """The error for a request that no model of any pool can serve now.

        A failed call spends an attempt. A call that may not be made now spends none, nor does a
        half-open probe.
        """
        error = tried.get(intended.model.name)
        if isinstance(error, SkippedModel) and error.reason not in RATE_LIMIT_CODES:
            return next(reversed(_raised_here(tried)), error)
        if error is not None and not isinstance(
            error, (RateLimited, ProbeInProgress, SkippedModel)
        ):
            return error
        retry_after = (error.retry_after if error is not None else None) or 0.0
        wait_s = max(retry_after, self._guard.wait_s(intended.backend))
        reason = candidates.unavailable.get(intended.model.name)
        if reason is None:
            reason = _reason(error) if error else "unavailable"
        return NoBackendAvailable(reason, retry_after=wait_s)


def _reason(error: InferenceError) -> str:
    return error.reason if isinstance(error, SkippedModel) else error.code


def _raised_here(tried: Mapping[str, InferenceError]) -> list[InferenceError]:
    """The errors of models that this process called."""
    return [error for error in tried.values() if not isinstance(error, SkippedModel)]


def _no_model_message(request: RoutingRequest) -> str:
    # Task and model are the caller's text, and stay out of messages stored in the clear.
    where = " on your own machines" if request.privacy != Privacy.SHAREABLE else ""
    if request.model is not None:
        return f"the requested model is not enabled{where} for this kind and task of job"
    return f"no model that is enabled{where} is good enough for this task; see `vestry doctor`"
