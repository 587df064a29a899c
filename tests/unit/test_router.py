"""The Router: its own pool's candidates in order, and what it says where it cannot serve."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from inference.catalogue.loader import load
from inference.catalogue.schema import BackendEntry
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
from inference.routing.policy import Budget, RoutingPolicy, RoutingRequest
from inference.routing.router import RerouteRequired, RoutedResult, Router
from tasks.protocol import outcome_of_error, served_of
from vestry.lanes import Pool

ENABLED = {entry.name: entry.url or "http://127.0.0.1:1" for entry in load().backends}


class FakeRegistry:
    """Gives a model's name for the model."""

    def model(self, entry: Any) -> str:
        return str(entry.name)


class FakeGuard:
    """Knows what it is told, and remembers what it was asked."""

    def __init__(self, **away: str) -> None:
        self.away = away
        self.entered: list[str] = []
        self.left_with: list[tuple[str, InferenceError | None]] = []
        self.closed: dict[str, InferenceError] = {}
        self.probing = False

    def health(self) -> dict[str, str]:
        return self.away

    def budget(self) -> Budget:
        return Budget()

    def before_call(self, backend: BackendEntry) -> bool:
        self.entered.append(backend.name)
        if backend.name in self.closed:
            raise self.closed[backend.name]
        return self.probing

    def after_call(self, backend: BackendEntry, error: InferenceError | None) -> None:
        self.left_with.append((backend.name, error))

    def wait_s(self, backend: BackendEntry) -> float:
        del backend
        return 7.0


def serve(
    gate: FakeGuard, pool: Pool, call: Callable[[str], Any] = str, **wish: Any
) -> RoutedResult[Any]:
    policy = RoutingPolicy(load().only(ENABLED))
    given = {"kind": "generation", "task": None, "privacy": "shareable", "latency": "bulk"} | wish
    router = Router(policy, pool, FakeRegistry(), gate)  # type: ignore[arg-type]
    return router.serve(RoutingRequest(**given), lambda model, _candidate: call(model))


def failing(**errors: InferenceError) -> Callable[[str], str]:
    def call(model: str) -> str:
        for start, error in errors.items():
            if model.startswith(start):
                raise error
        return model

    return call


def test_the_first_choice_serves_and_nothing_is_degraded() -> None:
    gate = FakeGuard()
    answer = serve(gate, Pool.CLOUD)
    assert (answer.value, answer.degraded) == ("gpt-4o-mini", False)
    assert gate.left_with == [("openai", None)]
    served = served_of(answer, 1_000_000, 1_000_000)
    assert (served.cost, served.locality, served.degraded) == (Decimal("0.75"), "cloud", False)
    assert served.policy == answer.policy


def test_a_job_whose_first_choice_is_elsewhere_goes_there() -> None:
    gate = FakeGuard()
    with pytest.raises(RerouteRequired) as caught:
        serve(gate, Pool.GPU)
    assert (caught.value.pool, caught.value.reason) == (Pool.CLOUD, "first_choice")
    assert gate.entered == []
    outcome = outcome_of_error(caught.value)
    assert getattr(outcome, "pool", None) is Pool.CLOUD


@pytest.mark.parametrize(
    "error", [BackendUnavailable(), RateLimited(), BadAnswer(), ModelMissing()]
)
def test_a_backend_that_fails_gives_way_to_the_next_of_the_pool(error: InferenceError) -> None:
    gate = FakeGuard()
    answer = serve(gate, Pool.CLOUD, failing(gpt=error))
    assert (answer.value, answer.reason) == ("claude-opus-4-8", error.code)
    assert gate.left_with == [("openai", error), ("anthropic", None)]
    served = served_of(answer)
    assert (served.model, served.intended_model) == ("claude-opus-4-8", "gpt-4o-mini")
    assert (served.degraded, served.reason) == (True, error.code)


@pytest.mark.parametrize("error", [Refused(), BadRequest(), TooLong()])
def test_what_is_wrong_with_the_request_is_no_other_backend_s_business(
    error: InferenceError,
) -> None:
    gate = FakeGuard()
    with pytest.raises(type(error)):
        serve(gate, Pool.CLOUD, failing(gpt=error))
    assert gate.entered == ["openai"]


def test_with_all_clouds_away_the_job_goes_home_and_is_served_there_degraded() -> None:
    gate = FakeGuard(openai="rate_limited", anthropic="backend_unavailable")
    with pytest.raises(RerouteRequired) as caught:
        serve(gate, Pool.CLOUD)
    assert (caught.value.pool, caught.value.reason) == (Pool.GPU, "rate_limited")
    answer = serve(gate, Pool.GPU)
    assert (answer.value, answer.reason) == ("llama3.2:3b", "rate_limited")


def test_a_cloud_that_fails_just_now_sends_the_job_home_where_it_stays() -> None:
    gate = FakeGuard()
    with pytest.raises(RerouteRequired) as caught:
        serve(gate, Pool.CLOUD, failing(gpt=BadAnswer(), claude=ModelMissing()))
    assert (caught.value.pool, caught.value.reason) == (Pool.GPU, "bad_answer")
    passed = tuple(outcome_of_error(caught.value).tried_models.items())
    # The clouds are as well as before, for all that anybody knows.
    answer = serve(gate, Pool.GPU, tried_models=passed)
    assert (answer.value, answer.reason, answer.degraded) == ("llama3.2:3b", "bad_answer", True)
    home = [name for name in ENABLED if load().backend(name).locality == "local"]
    away = FakeGuard(**dict.fromkeys(home, "backend_unavailable"))
    with pytest.raises(SkippedModel) as over:
        serve(away, Pool.GPU, tried_models=passed)
    assert over.value.retryable, "an attempt, and not for ever back and forth"


def test_trying_whether_a_server_is_back_costs_no_attempt() -> None:
    gate = FakeGuard()
    gate.probing = True
    with pytest.raises(NoBackendAvailable) as caught:
        serve(gate, Pool.CLOUD, failing(claude=BackendUnavailable()), task="study-guide")
    assert str(caught.value) == "backend_unavailable"
    assert isinstance(gate.left_with[0][1], BackendUnavailable)


def test_a_server_s_model_that_cannot_be_warmed_up_tells_of_the_server() -> None:
    class Cold(FakeRegistry):
        def model(self, entry: Any) -> str:
            raise BackendUnavailable(str(entry.name))

    gate = FakeGuard()
    policy = RoutingPolicy(load().only(ENABLED))
    router = Router(policy, Pool.CLOUD, Cold(), gate)  # type: ignore[arg-type]
    wish = RoutingRequest("generation", "study-guide", "shareable", "bulk")
    with pytest.raises(BackendUnavailable):
        router.serve(wish, lambda model, _: model)
    ((name, error),) = gate.left_with
    assert (name, type(error)) == ("anthropic", BackendUnavailable)


def test_an_answer_that_served_nobody_is_paid_for() -> None:
    gate = FakeGuard()
    error = BadAnswer().with_usage(1_000_000, 1_000_000)
    with pytest.raises(RerouteRequired) as caught:
        serve(FakeGuard(anthropic="rate_limited"), Pool.CLOUD, failing(gpt=error))
    with pytest.raises(Refused) as refused:
        serve(gate, Pool.CLOUD, failing(gpt=Refused().with_usage(1_000_000, 1_000_000)))
    for told in (outcome_of_error(refused.value), outcome_of_error(caught.value)):
        assert told.served is not None
        assert (told.served.model, told.served.cost) == ("gpt-4o-mini", Decimal("0.75"))


def test_where_no_other_is_adequate_the_job_waits_and_no_attempt_is_spent() -> None:
    gate = FakeGuard(anthropic="rate_limited")
    for pool in (Pool.CLOUD, Pool.GPU):
        with pytest.raises(NoBackendAvailable) as caught:
            serve(gate, pool, task="study-guide")
        assert (str(caught.value), caught.value.retry_after) == ("rate_limited", 7.0)
    outcome = outcome_of_error(caught.value)
    assert getattr(outcome, "uncounted", None) is True
    assert getattr(outcome, "retry_after", None) == 7.0


def test_a_failed_call_with_no_other_model_is_an_attempt_and_a_refused_turn_is_none() -> None:
    gate = FakeGuard()
    with pytest.raises(BackendUnavailable):
        serve(gate, Pool.CLOUD, failing(claude=BackendUnavailable()), task="study-guide")
    with pytest.raises(NoBackendAvailable) as caught:
        serve(gate, Pool.CLOUD, failing(claude=LocalRateLimit(retry_after=30)), task="study-guide")
    assert caught.value.retry_after == 30


@pytest.mark.parametrize(
    "wish", [{"privacy": "private", "task": "study-guide"}, {"model": "sekrit"}, {"kind": "rerank",
             "model": "gpt-4o-mini"}],
)  # fmt: skip
def test_where_nothing_ever_could_serve_it_the_job_is_told_so(wish: dict[str, Any]) -> None:
    with pytest.raises(NoAdequateModel) as caught:
        serve(FakeGuard(), Pool.GPU, **wish)
    assert "sekrit" not in str(caught.value)
    assert not getattr(outcome_of_error(caught.value), "retryable", True)


def test_a_bug_in_a_backend_says_nothing_of_its_server() -> None:
    gate = FakeGuard()

    def call(model: str) -> str:
        raise ValueError(model)

    with pytest.raises(ValueError, match="gpt"):
        serve(gate, Pool.CLOUD, call)
    ((name, error),) = gate.left_with
    assert name == "openai"
    assert not isinstance(error, BackendUnavailable)
