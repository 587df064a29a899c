"""The Router: candidates of its pool in order, rerouting, and errors if no model can serve."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from inference.catalogue.loader import load
from inference.errors import (
    BackendUnavailable,
    BadAnswer,
    BadRequest,
    InferenceError,
    LocalRateLimit,
    ModelMissing,
    NoAdequateModel,
    NoBackendAvailable,
    RateLimited,
    Refused,
    SkippedModel,
    TooLong,
)
from inference.routing.policy import RoutingPolicy, RoutingRequest
from inference.routing.router import RerouteRequired, RoutedResult, Router
from tasks.protocol import outcome_of_error, served_of
from tests.handler_fakes import FakeGuard, FakeRegistry
from vestry.lanes import Pool

ENABLED = {entry.name: entry.url or "http://127.0.0.1:1" for entry in load().backends}


def serve(
    guard: FakeGuard, pool: Pool, call: Callable[[str], Any] = str, **fields: Any
) -> RoutedResult[Any]:
    policy = RoutingPolicy(load().only(ENABLED))
    defaults = {"kind": "generation", "task": None, "privacy": "shareable", "latency": "bulk"}
    router = Router(policy, pool, FakeRegistry(), guard)  # type: ignore[arg-type]
    return router.serve(
        RoutingRequest(**(defaults | fields)), lambda model, _candidate: call(model)
    )


def failing(**errors: InferenceError) -> Callable[[str], str]:
    def call(model: str) -> str:
        for start, error in errors.items():
            if model.startswith(start):
                raise error
        return model

    return call


def test_first_choice_serves_without_degradation() -> None:
    guard = FakeGuard()
    result = serve(guard, Pool.CLOUD)
    assert (result.value, result.degraded) == ("gpt-4o-mini", False)
    assert guard.ended == [("openai", None)]
    served = served_of(result, 1_000_000, 1_000_000)
    assert (served.cost, served.locality, served.degraded) == (Decimal("0.75"), "cloud", False)
    assert served.policy == result.policy


def test_job_is_rerouted_to_the_pool_of_its_first_choice() -> None:
    guard = FakeGuard()
    with pytest.raises(RerouteRequired) as caught:
        serve(guard, Pool.GPU)
    assert (caught.value.pool, caught.value.reason) == (Pool.CLOUD, "first_choice")
    assert guard.calls == []
    outcome = outcome_of_error(caught.value)
    assert getattr(outcome, "pool", None) is Pool.CLOUD


@pytest.mark.parametrize(
    "error", [BackendUnavailable(), RateLimited(), BadAnswer(), ModelMissing()]
)
def test_failed_backend_falls_back_to_next_model(error: InferenceError) -> None:
    guard = FakeGuard()
    result = serve(guard, Pool.CLOUD, failing(gpt=error))
    assert (result.value, result.reason) == ("claude-opus-4-8", error.code)
    assert guard.ended == [("openai", error), ("anthropic", None)]
    served = served_of(result)
    assert (served.model, served.intended_model) == ("claude-opus-4-8", "gpt-4o-mini")
    assert (served.degraded, served.reason) == (True, error.code)


@pytest.mark.parametrize("error", [Refused(), BadRequest(), TooLong()])
def test_error_of_the_request_has_no_fallback(
    error: InferenceError,
) -> None:
    guard = FakeGuard()
    with pytest.raises(type(error)):
        serve(guard, Pool.CLOUD, failing(gpt=error))
    assert guard.calls == ["openai"]


def test_job_is_rerouted_and_degraded_while_clouds_are_unavailable() -> None:
    guard = FakeGuard(openai="rate_limited", anthropic="backend_unavailable")
    with pytest.raises(RerouteRequired) as caught:
        serve(guard, Pool.CLOUD)
    assert (caught.value.pool, caught.value.reason) == (Pool.GPU, "rate_limited")
    result = serve(guard, Pool.GPU)
    assert (result.value, result.reason) == ("llama3.2:3b", "rate_limited")


def test_rerouted_job_does_not_return_to_tried_models() -> None:
    guard = FakeGuard()
    with pytest.raises(RerouteRequired) as caught:
        serve(guard, Pool.CLOUD, failing(gpt=BadAnswer(), claude=ModelMissing()))
    assert (caught.value.pool, caught.value.reason) == (Pool.GPU, "bad_answer")
    tried = tuple(outcome_of_error(caught.value).tried_models.items())
    # The clouds still count as healthy.
    result = serve(guard, Pool.GPU, tried_models=tried)
    assert (result.value, result.reason, result.degraded) == ("llama3.2:3b", "bad_answer", True)
    local = [name for name in ENABLED if load().backend(name).locality == "local"]
    unhealthy = FakeGuard(**dict.fromkeys(local, "backend_unavailable"))
    with pytest.raises(SkippedModel) as skipped:
        serve(unhealthy, Pool.GPU, tried_models=tried)
    assert skipped.value.retryable, "the job spends an attempt instead of alternating between pools"


def test_failed_half_open_probe_spends_no_attempt() -> None:
    guard = FakeGuard()
    guard.is_probe = True
    with pytest.raises(NoBackendAvailable) as caught:
        serve(guard, Pool.CLOUD, failing(claude=BackendUnavailable()), task="study-guide")
    assert str(caught.value) == "backend_unavailable"
    assert isinstance(guard.ended[0][1], BackendUnavailable)


def test_failed_warm_up_is_recorded_for_the_server() -> None:
    class ColdRegistry(FakeRegistry):
        def model(self, entry: Any) -> str:
            raise BackendUnavailable(str(entry.name))

    guard = FakeGuard()
    policy = RoutingPolicy(load().only(ENABLED))
    router = Router(policy, Pool.CLOUD, ColdRegistry(), guard)  # type: ignore[arg-type]
    request_fields = RoutingRequest("generation", "study-guide", "shareable", "bulk")
    with pytest.raises(BackendUnavailable):
        router.serve(request_fields, lambda model, _: model)
    ((name, error),) = guard.ended
    assert (name, type(error)) == ("anthropic", BackendUnavailable)


def test_unusable_paid_call_is_on_the_receipt() -> None:
    guard = FakeGuard()
    error = BadAnswer().with_usage(1_000_000, 1_000_000)
    with pytest.raises(RerouteRequired) as caught:
        serve(FakeGuard(anthropic="rate_limited"), Pool.CLOUD, failing(gpt=error))
    with pytest.raises(Refused) as refused:
        serve(guard, Pool.CLOUD, failing(gpt=Refused().with_usage(1_000_000, 1_000_000)))
    for outcome in (outcome_of_error(refused.value), outcome_of_error(caught.value)):
        assert outcome.served is not None
        assert (outcome.served.model, outcome.served.cost) == ("gpt-4o-mini", Decimal("0.75"))


def test_job_waits_without_an_attempt_if_no_other_model_is_adequate() -> None:
    guard = FakeGuard(anthropic="rate_limited")
    for pool in (Pool.CLOUD, Pool.GPU):
        with pytest.raises(NoBackendAvailable) as caught:
            serve(guard, pool, task="study-guide")
        assert (str(caught.value), caught.value.retry_after) == ("rate_limited", 7.0)
    outcome = outcome_of_error(caught.value)
    assert getattr(outcome, "uncounted", None) is True
    assert getattr(outcome, "retry_after", None) == 7.0


def test_failed_call_spends_an_attempt_and_missing_permit_does_not() -> None:
    guard = FakeGuard()
    with pytest.raises(BackendUnavailable):
        serve(guard, Pool.CLOUD, failing(claude=BackendUnavailable()), task="study-guide")
    with pytest.raises(NoBackendAvailable) as caught:
        serve(guard, Pool.CLOUD, failing(claude=LocalRateLimit(retry_after=30)), task="study-guide")
    assert caught.value.retry_after == 30


@pytest.mark.parametrize(
    "request_fields",
    [
        {"privacy": "private", "task": "study-guide"},
        {"model": "sekrit"},
        {"kind": "rerank", "model": "gpt-4o-mini"},
    ],
)
def test_job_without_adequate_model_fails(request_fields: dict[str, Any]) -> None:
    with pytest.raises(NoAdequateModel) as caught:
        serve(FakeGuard(), Pool.GPU, **request_fields)
    assert "sekrit" not in str(caught.value)
    assert not getattr(outcome_of_error(caught.value), "retryable", True)


def test_unexpected_error_is_not_recorded_as_failure_of_the_server() -> None:
    guard = FakeGuard()

    def call(model: str) -> str:
        raise ValueError(model)

    with pytest.raises(ValueError, match="gpt"):
        serve(guard, Pool.CLOUD, call)
    ((name, error),) = guard.ended
    assert name == "openai"
    assert not isinstance(error, BackendUnavailable)
