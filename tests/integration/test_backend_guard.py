"""Circuit breakers, rate limits and spending, shared by separate backend guards through Postgres."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from decimal import Decimal
from typing import Any

import psycopg
import pytest

from inference.catalogue.loader import load
from inference.errors import (
    BackendUnavailable,
    BadRequest,
    CallCancelled,
    InferenceError,
    LocalRateLimit,
    ProbeInProgress,
    RateLimited,
    TooLong,
)
from inference.routing import backend_guard
from inference.routing.backend_guard import BackendGuard, BreakerSettings, breaker_key
from models import backend_health
from workers.stack.dev_stack import DevStack

CATALOGUE = load().only({"openai": None, "ollama": None, "tesseract": None})
CLOUD = CATALOGUE.backend("openai")
LOCAL = CATALOGUE.backend("ollama")
LIMITS = BreakerSettings(failures=3, cooldown_s=20.0, max_cooldown_s=60.0)


@pytest.fixture
def connect(clean: DevStack) -> Callable[[], AbstractContextManager[psycopg.Connection[Any]]]:
    url = clean.database_url("vestry_shareable")

    @contextmanager
    def connection() -> Iterator[psycopg.Connection[Any]]:
        with psycopg.connect(url) as conn:
            yield conn

    return connection


@pytest.fixture
def guards(connect: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[BackendGuard, BackendGuard]:
    monkeypatch.setattr(backend_guard, "STATE_TTL_S", 0.0)
    return BackendGuard(connect, CATALOGUE, LIMITS), BackendGuard(connect, CATALOGUE, LIMITS)


def open_breaker(guard: BackendGuard) -> None:
    for _ in range(LIMITS.failures):
        guard.after_call(CLOUD, BackendUnavailable())


def pass_time(clean: DevStack, seconds: float) -> None:
    with psycopg.connect(clean.superuser_url) as conn:
        conn.execute(
            "UPDATE vestry.backend_health SET open_until = open_until - make_interval(secs => %s)",
            [seconds],
        )


def test_third_failure_across_guards_opens_the_breaker_for_all(
    guards: tuple[BackendGuard, BackendGuard],
) -> None:
    one, other = guards
    one.after_call(CLOUD, BackendUnavailable())
    other.after_call(CLOUD, BackendUnavailable())
    assert one.health() == {}
    one.after_call(CLOUD, BackendUnavailable())
    assert one.health() == other.health() == {"openai": "backend_unavailable"}
    assert 15 < one.wait_s(CLOUD) <= 20.5


def test_response_between_failures_resets_the_count(
    guards: tuple[BackendGuard, BackendGuard],
) -> None:
    one, other = guards
    for error in (
        BackendUnavailable(),
        BackendUnavailable(),
        BadRequest(),
        BackendUnavailable(),
        BackendUnavailable(),
        None,
    ):
        one.health()
        one.after_call(CLOUD, error)
        assert other.health() == {}


def test_half_open_breaker_admits_one_probe_and_its_response_closes_it(
    clean: DevStack, guards: tuple[BackendGuard, BackendGuard]
) -> None:
    one, other = guards
    open_breaker(one)
    pass_time(clean, 20.5)
    assert one.health() == {}
    assert one.unhealthy() == {"openai": "backend_unavailable"}, (
        "queued jobs are not moved back yet"
    )
    one.before_call(CLOUD)
    assert other.health() == {"openai": "backend_unavailable"}
    with pytest.raises(BackendUnavailable):
        other.before_call(CLOUD)
    one.after_call(CLOUD, None)
    assert other.health() == other.unhealthy() == {}
    assert not other.before_call(CLOUD)


@pytest.mark.parametrize("error", [CallCancelled(), TooLong()])
def test_probe_without_a_call_is_inconclusive_and_another_is_admitted(
    clean: DevStack, guards: tuple[BackendGuard, BackendGuard], error: InferenceError
) -> None:
    one, other = guards
    open_breaker(one)
    pass_time(clean, 20.5)
    assert one.before_call(CLOUD)
    one.after_call(CLOUD, error)
    assert other.unhealthy() == {"openai": "backend_unavailable"}
    assert other.before_call(CLOUD)


def test_failed_probe_doubles_the_cooldown(
    clean: DevStack, guards: tuple[BackendGuard, BackendGuard]
) -> None:
    one, other = guards
    open_breaker(one)
    pass_time(clean, 20.5)
    one.before_call(CLOUD)
    one.after_call(CLOUD, BackendUnavailable())
    pass_time(clean, 20.5)
    assert other.health() == {"openai": "backend_unavailable"}
    pass_time(clean, 20.5)
    assert other.health() == {}


def test_retry_after_opens_the_breaker_until_then(
    guards: tuple[BackendGuard, BackendGuard],
) -> None:
    one, other = guards
    one.after_call(CLOUD, RateLimited(retry_after=20))
    assert other.health() == {"openai": "rate_limited"}
    assert 10 < other.wait_s(CLOUD) < 22
    one.after_call(CLOUD, RateLimited(retry_after=5))
    assert other.wait_s(CLOUD) > 9, "a shorter Retry-After does not shorten a longer one"
    one.after_call(CLOUD, RateLimited(retry_after=10**9))
    assert other.wait_s(CLOUD) < 62


def test_local_servers_have_a_breaker_per_address(
    guards: tuple[BackendGuard, BackendGuard], connect: Any
) -> None:
    del guards
    moved = CATALOGUE.only({"ollama": "http://127.0.0.1:9999"})
    one, other = BackendGuard(connect, CATALOGUE, LIMITS), BackendGuard(connect, moved, LIMITS)
    for _ in range(3):
        one.after_call(LOCAL, BackendUnavailable())
    assert one.health() == {"ollama": "backend_unavailable"}
    assert other.health() == {}
    assert breaker_key(LOCAL) == "ollama at 127.0.0.1:11434"


def test_in_process_backend_has_no_breaker(guards: tuple[BackendGuard, BackendGuard]) -> None:
    one, _ = guards
    for _ in range(5):
        one.after_call(CATALOGUE.backend("tesseract"), BackendUnavailable())
    assert one.health() == {}


def test_rate_limit_is_observed_and_used_across_threads(connect: Any) -> None:
    limited = CLOUD.model_copy(update={"requests_per_minute": 600, "rate_window_s": 1.0})
    calls: list[float] = []

    def work() -> None:
        guard = BackendGuard(connect, CATALOGUE, LIMITS)
        while len(calls) < 31:
            guard.acquire_permit(limited)
            calls.append(time.monotonic())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    calls.sort()
    spans = [b - a for a, b in zip(calls, calls[10:], strict=False)]
    assert min(spans) >= 1.0
    # Three windows of 2.5 s, slack included, and a third as much again for a busy machine.
    assert calls[30] - calls[0] < 10


def test_distant_permit_is_refused_with_its_delay(connect: Any) -> None:
    guard = BackendGuard(connect, CATALOGUE, LIMITS)
    limited = CLOUD.model_copy(update={"requests_per_minute": 1})
    guard.acquire_permit(limited)
    with pytest.raises(LocalRateLimit) as caught:
        guard.acquire_permit(limited)
    assert caught.value.retry_after is not None
    assert 50 < caught.value.retry_after < 62
    guard.after_call(limited, caught.value)
    assert guard.health() == {}, "a local rate limit is no failure of the backend"


def test_spending_is_summed_and_limited_by_the_budget(connect: Any) -> None:
    guard = BackendGuard(connect, CATALOGUE, LIMITS, budget=Decimal("0.01"))
    assert not guard.budget().used_up
    with connect() as conn:
        conn.execute(
            """INSERT INTO vestry.spending (day, backend, calls, cost)
               VALUES ((vestry.clock() AT TIME ZONE 'UTC')::date, 'openai', 2, 0.006),
                      ((vestry.clock() AT TIME ZONE 'UTC')::date, 'anthropic', 1, 0.004),
                      ((vestry.clock() AT TIME ZONE 'UTC')::date - 1, 'openai', 9, 10)"""
        )
        assert backend_health.spent_today(conn) == Decimal("0.010")
    assert BackendGuard(connect, CATALOGUE, LIMITS, budget=Decimal("0.01")).budget().used_up


def test_last_known_state_is_used_while_the_database_is_unavailable(
    connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend_guard, "STATE_TTL_S", 0.0)
    available = True

    @contextmanager
    def unreliable() -> Iterator[psycopg.Connection[Any]]:
        if not available:
            raise psycopg.OperationalError
        with connect() as conn:
            yield conn

    guard = BackendGuard(unreliable, CATALOGUE, LIMITS, Decimal(5))
    open_breaker(guard)
    last_known = guard.health()
    available = False
    assert guard.health() == last_known == {"openai": "backend_unavailable"}
    assert guard.budget().limit == Decimal(5)
    with pytest.raises(ProbeInProgress):
        guard.before_call(CLOUD)
    with pytest.raises(LocalRateLimit):
        guard.acquire_permit(CLOUD.model_copy(update={"requests_per_minute": 10}))
    for error in (None, BackendUnavailable(), CallCancelled()):
        guard.after_call(CLOUD, error)
