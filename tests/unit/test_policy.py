"""The routing policy: the shipped rules by examples, and its privacy wall."""

from __future__ import annotations

import itertools
from decimal import Decimal
from typing import Any

import pytest

from inference.catalogue.loader import load
from inference.catalogue.schema import Catalogue, Rule
from inference.routing.policy import Budget, Candidates, RoutingPolicy, RoutingRequest
from vestry.lanes import KINDS

ALL = {entry.name: None for entry in load().backends}
HEALTHY: dict[str, str] = {}
FREE = Budget()


def policy(*without: str, catalogue: Catalogue | None = None) -> RoutingPolicy:
    enabled = {name: url for name, url in ALL.items() if name not in without}
    return RoutingPolicy((catalogue or load()).only(enabled))


def candidates_of(
    routing: RoutingPolicy,
    health: dict[str, str] | None = None,
    budget: Budget = FREE,
    **fields: Any,
) -> Candidates:
    defaults = {
        "kind": "generation",
        "task": None,
        "privacy": "shareable",
        "latency": "interactive",
    }
    return routing.candidates(RoutingRequest(**(defaults | fields)), health or HEALTHY, budget)


def names(candidates: Candidates) -> list[str]:
    return [candidate.model.name for candidate in candidates.available]


def test_shareable_work_prefers_clouds_and_private_work_is_local() -> None:
    routing = policy()
    shareable, private = candidates_of(routing), candidates_of(routing, privacy="private")
    assert names(shareable)[:2] == ["gpt-4o-mini", "claude-opus-4-8"]
    assert shareable.first is not None
    assert shareable.first.pool == "cloud"
    assert names(private) == ["llama3.2:3b", "phi-3-mini", "SmolLM2-135M-Instruct"]
    assert {candidate.pool for candidate in private.available} == {"gpu"}


def test_private_work_never_has_a_cloud_candidate() -> None:
    cloud_first = load().model_copy(update={"policy": (Rule(prefer=("cloud", "local")),)})
    tasks = [None, *(task.name for task in cloud_first.tasks), "no such task"]
    models = [None, *(model.name for model in cloud_first.models)]
    for routing in (policy(), policy(catalogue=cloud_first)):
        for kind, task, model, quality, tier in itertools.product(
            KINDS, tasks, models, ("adequate", "best"), (None, "offline", "gold")
        ):
            for health in (HEALTHY, {"ollama": "x", "llama": "x", "sentence-transformers": "x"}):
                candidates = candidates_of(
                    routing, health, privacy="private", kind=kind, task=task, model=model,
                    quality=quality, tier=tier,
                )  # fmt: skip
                assert all(candidate.locality == "local" for candidate in candidates.available)
                assert candidates.intended is None or candidates.intended.locality == "local"
    # An unknown privacy class counts as private.
    assert all(
        c.locality == "local" for c in candidates_of(policy(), privacy="Shareable ").available
    )


@pytest.mark.parametrize(
    "task", ["study-guide", "multi-text-reasoning", "nuanced-interpretation", "consistency-check"]
)
def test_demanding_task_waits_for_its_only_model(task: str) -> None:
    healthy = candidates_of(policy(), task=task)
    assert names(healthy) == ["claude-opus-4-8"]
    limited = candidates_of(policy(), {"anthropic": "rate_limited"}, task=task)
    assert limited.first is None
    assert limited.intended is not None
    assert limited.unavailable == {"claude-opus-4-8": "rate_limited"}
    assert candidates_of(policy(), task=task, privacy="private").intended is None
    assert candidates_of(policy("anthropic"), task=task).intended is None


def test_unavailable_first_choice_is_the_reason_of_its_substitute() -> None:
    candidates = candidates_of(policy("anthropic"), {"openai": "rate_limited"})
    assert candidates.intended is not None
    assert candidates.intended.model.name == "gpt-4o-mini"
    assert candidates.first is not None
    assert candidates.first.model.name == "llama3.2:3b"
    assert candidates.why_not_intended(candidates.first) == "rate_limited"


def test_disabled_cloud_is_not_the_first_choice() -> None:
    candidates = candidates_of(policy("anthropic", "openai"))
    assert candidates.first is candidates.intended
    assert candidates.first is not None
    assert candidates.why_not_intended(candidates.first) is None


def test_spent_budget_excludes_clouds_only() -> None:
    spent = Budget(Decimal(5), Decimal(5))
    candidates = candidates_of(policy(), budget=spent)
    assert set(candidates.unavailable.values()) == {"over_budget"}
    assert set(candidates.unavailable) == {"gpt-4o-mini", "claude-opus-4-8"}
    assert names(candidates)[0] == "llama3.2:3b"
    assert candidates_of(policy(), budget=Budget(Decimal(5), Decimal("4.99"))).unavailable == {}
    assert candidates_of(policy(), budget=Budget(None, Decimal(10**6))).unavailable == {}


def test_tier_quality_and_kind_select_the_rule() -> None:
    routing = policy()
    assert all(c.locality == "local" for c in candidates_of(routing, tier="offline").available)
    local_first = candidates_of(routing, kind="classification")
    assert names(local_first)[0] == "all-MiniLM-L6-v2"
    assert names(candidates_of(routing, kind="classification", quality="best"))[0] == "gpt-4o-mini"
    assert names(candidates_of(routing, kind="embedding")) == [
        "all-MiniLM-L6-v2",
        "nomic-embed-text",
    ]
    ocr = candidates_of(routing, kind="ocr")
    assert [(c.model.name, c.pool) for c in ocr.available] == [("tesseract", "cpu")]


def test_model_for_the_task_precedes_general_models() -> None:
    routing = policy()
    assert names(candidates_of(routing, kind="classification", task="language")) == [
        "py3langid",
        "claude-opus-4-8",
    ]
    assert names(candidates_of(routing, kind="ocr", task="historical")) == ["tesseract-finetuned"]


def test_named_model_is_the_only_candidate() -> None:
    routing = policy()
    assert names(candidates_of(routing, model="phi-3-mini")) == ["phi-3-mini"]
    assert candidates_of(routing, model="no such model").intended is None
    assert candidates_of(routing, model="gpt-4o-mini", privacy="private").intended is None
    assert candidates_of(routing, model="gpt-4o-mini", task="study-guide").intended is None


def test_capable_local_model_in_catalogue_serves_demanding_task() -> None:
    catalogue = load()
    capable = catalogue.model("llama3.2:3b").model_copy(
        update={"name": "llama5:900b", "tasks": ("study-guide",)}
    )
    routing = policy(catalogue=catalogue.adding(None, capable))
    assert names(candidates_of(routing, task="study-guide", privacy="private")) == ["llama5:900b"]
    assert names(candidates_of(routing, {"anthropic": "unavailable"}, task="study-guide")) == [
        "llama5:900b"
    ]
