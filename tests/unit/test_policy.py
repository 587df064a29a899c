"""RoutingPolicy: the whole table by examples, and the wall in this room."""

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
WELL: dict[str, str] = {}
FREE = Budget()


def policy(*without: str, catalogue: Catalogue | None = None) -> RoutingPolicy:
    enabled = {name: url for name, url in ALL.items() if name not in without}
    return RoutingPolicy((catalogue or load()).only(enabled))


def ask(
    made: RoutingPolicy, health: dict[str, str] | None = None, budget: Budget = FREE, **wish: Any
) -> Candidates:
    given = {"kind": "generation", "task": None, "privacy": "shareable", "latency": "interactive"}
    return made.candidates(RoutingRequest(**(given | wish)), health or WELL, budget)


def names(found: Candidates) -> list[str]:
    return [candidate.model.name for candidate in found.available]


def test_study_content_goes_to_the_cloud_and_a_journal_stays_at_home() -> None:
    made = policy()
    shareable, private = ask(made), ask(made, privacy="private")
    assert names(shareable)[:2] == ["gpt-4o-mini", "claude-opus-4-8"]
    assert shareable.first is not None
    assert shareable.first.pool == "cloud"
    assert names(private) == ["llama3.2:3b", "phi-3-mini", "SmolLM2-135M-Instruct"]
    assert {candidate.pool for candidate in private.available} == {"gpu"}


def test_no_wish_health_or_rule_leads_private_work_to_a_cloud() -> None:
    greedy = load().model_copy(update={"policy": (Rule(prefer=("cloud", "local")),)})
    tasks = [None, *(task.name for task in greedy.tasks), "no such task"]
    models = [None, *(model.name for model in greedy.models)]
    for made in (policy(), policy(catalogue=greedy)):
        for kind, task, model, quality, tier in itertools.product(
            KINDS, tasks, models, ("adequate", "best"), (None, "offline", "gold")
        ):
            for health in (WELL, {"ollama": "x", "llama": "x", "sentence-transformers": "x"}):
                found = ask(made, health, privacy="private", kind=kind, task=task, model=model,
                            quality=quality, tier=tier)  # fmt: skip
                assert all(candidate.locality == "local" for candidate in found.available)
                assert found.intended is None or found.intended.locality == "local"
    # A privacy that nobody knows is no less private.
    assert all(c.locality == "local" for c in ask(policy(), privacy="Shareable ").available)


@pytest.mark.parametrize(
    "task", ["study-guide", "multi-text-reasoning", "nuanced-interpretation", "consistency-check"]
)
def test_a_demanding_task_waits_for_the_one_model_that_can(task: str) -> None:
    well = ask(policy(), task=task)
    assert names(well) == ["claude-opus-4-8"]
    away = ask(policy(), {"anthropic": "rate_limited"}, task=task)
    assert away.first is None
    assert away.intended is not None
    assert away.unavailable == {"claude-opus-4-8": "rate_limited"}
    assert ask(policy(), task=task, privacy="private").intended is None
    assert ask(policy("anthropic"), task=task).intended is None


def test_a_cloud_that_is_away_is_told_on_what_serves_instead() -> None:
    found = ask(policy("anthropic"), {"openai": "rate_limited"})
    assert found.intended is not None
    assert found.intended.model.name == "gpt-4o-mini"
    assert found.first is not None
    assert found.first.model.name == "llama3.2:3b"
    assert found.why_not_intended(found.first) == "rate_limited"


def test_a_cloud_that_is_not_enabled_is_nothing_anybody_intended() -> None:
    found = ask(policy("anthropic", "openai"))
    assert found.first is found.intended
    assert found.first is not None
    assert found.why_not_intended(found.first) is None


def test_money_that_is_spent_keeps_clouds_away_and_nothing_else() -> None:
    spent = Budget(Decimal(5), Decimal(5))
    found = ask(policy(), budget=spent)
    assert set(found.unavailable.values()) == {"over_budget"}
    assert set(found.unavailable) == {"gpt-4o-mini", "claude-opus-4-8"}
    assert names(found)[0] == "llama3.2:3b"
    assert ask(policy(), budget=Budget(Decimal(5), Decimal("4.99"))).unavailable == {}
    assert ask(policy(), budget=Budget(None, Decimal(10**6))).unavailable == {}


def test_tier_quality_and_kind_choose_the_rule() -> None:
    made = policy()
    assert all(c.locality == "local" for c in ask(made, tier="offline").available)
    local_first = ask(made, kind="classification")
    assert names(local_first)[0] == "all-MiniLM-L6-v2"
    assert names(ask(made, kind="classification", quality="best"))[0] == "gpt-4o-mini"
    assert names(ask(made, kind="embedding")) == ["all-MiniLM-L6-v2", "nomic-embed-text"]
    ocr = ask(made, kind="ocr")
    assert [(c.model.name, c.pool) for c in ocr.available] == [("tesseract", "cpu")]


def test_a_model_made_for_a_task_goes_before_one_that_is_good_for_anything() -> None:
    made = policy()
    assert names(ask(made, kind="classification", task="language")) == [
        "py3langid",
        "claude-opus-4-8",
    ]
    assert names(ask(made, kind="ocr", task="historical")) == ["tesseract-finetuned"]


def test_a_model_that_is_named_is_that_one_or_none() -> None:
    made = policy()
    assert names(ask(made, model="phi-3-mini")) == ["phi-3-mini"]
    assert ask(made, model="no such model").intended is None
    assert ask(made, model="gpt-4o-mini", privacy="private").intended is None
    assert ask(made, model="gpt-4o-mini", task="study-guide").intended is None


def test_adding_a_capable_local_model_touches_the_catalogue_alone() -> None:
    catalogue = load()
    capable = catalogue.model("llama3.2:3b").model_copy(
        update={"name": "llama5:900b", "tasks": ("study-guide",)}
    )
    made = policy(catalogue=catalogue.adding(None, capable))
    assert names(ask(made, task="study-guide", privacy="private")) == ["llama5:900b"]
    assert names(ask(made, {"anthropic": "unavailable"}, task="study-guide")) == ["llama5:900b"]
