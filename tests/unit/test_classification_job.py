"""Classification and rerank jobs of the producer: validation, payload, result."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from vestry.crypto.envelope import plain_digest
from vestry.errors import InvalidInput, PayloadTooLarge
from vestry.jobs.classification import (
    EXAMPLES_MAX,
    LABELS_MAX,
    Classification,
    ClassificationResult,
    Label,
)
from vestry.jobs.rerank import PASSAGES_MAX, Ranked, Rerank, RerankResult
from vestry.validation import PAYLOAD_LIMIT

SECRET = "canary-51c9"


def classify(*labels: Any, **more: Any) -> Classification:
    return Classification("some text", labels=labels, **more)


def rerank(*passages: Any, **more: Any) -> Rerank:
    return Rerank("a query", passages=passages or ("one",), **more)


INVALID: list[tuple[str, Callable[[], object]]] = [
    ("text", lambda: Classification(" ")),
    ("text", lambda: Classification(f"{SECRET}\x00")),
    ("text", lambda: Classification(f"{SECRET}\udce9")),
    ("text", lambda: Classification(SECRET.encode())),  # type: ignore[arg-type]
    ("text", lambda: Classification("x" * (PAYLOAD_LIMIT + 1))),
    ("labels", lambda: Classification("a", labels="law, poetry")),
    ("labels", lambda: Classification("a", labels=7)),  # type: ignore[arg-type]
    ("labels", lambda: classify("alone")),
    ("labels", lambda: classify(*(f"label {n}" for n in range(LABELS_MAX + 1)))),
    ("labels[1]", lambda: classify("a", 7)),
    ("labels[1].name", lambda: classify("a", "")),
    ("labels[0].name", lambda: classify("x" * 201, "b")),
    ("labels[1].name", lambda: classify("a", f"{SECRET}\x00")),
    ("labels[2].name", lambda: classify(SECRET, "b", SECRET)),
    ("labels[2].name", lambda: classify(SECRET, "b", Label(SECRET, "described"))),
    ("labels[0].name", lambda: classify(Label(None), "b")),  # type: ignore[arg-type]
    ("labels[1].description", lambda: classify("a", Label("b", " "))),
    ("labels[1].description", lambda: classify("a", Label("b", f"{SECRET}\x00"))),
    ("labels[0].examples", lambda: classify(Label("a", examples=SECRET), "b")),
    ("labels[0].examples", lambda: classify(Label("a", examples=["x"] * (EXAMPLES_MAX + 1)), "b")),
    ("labels[0].examples[1]", lambda: classify(Label("a", examples=["x", ""]), "b")),
    ("labels[0].examples[0]", lambda: classify(Label("a", examples=[f"{SECRET}\x00"]), "b")),
    ("multi", lambda: classify("a", "b", multi="yes")),
    ("keep_text", lambda: classify("a", "b", keep_text=None)),
    ("threshold", lambda: classify("a", "b", threshold=1.5)),
    ("threshold", lambda: classify("a", "b", threshold=-0.1)),
    ("threshold", lambda: classify("a", "b", threshold=float("nan"))),
    ("threshold", lambda: classify("a", "b", threshold="high")),
    ("threshold", lambda: classify("a", "b", threshold=True)),
    ("model", lambda: classify("a", "b", model="")),
    ("query", lambda: Rerank("", passages=["a"])),
    ("query", lambda: Rerank(f"{SECRET}\x00", passages=["a"])),
    ("passages", lambda: Rerank("q", passages=[])),
    ("passages", lambda: Rerank("q", passages="one passage")),
    ("passages", lambda: Rerank("q", passages=["x"] * (PASSAGES_MAX + 1))),
    ("passages[1]", lambda: rerank("a", " ")),
    ("passages[1]", lambda: rerank("a", f"{SECRET}\x00")),
    ("passages[0]", lambda: rerank(None)),
    ("limit", lambda: rerank(limit=0)),
    ("limit", lambda: rerank(limit=True)),
    ("limit", lambda: rerank(limit=2.5)),
    ("keep_text", lambda: rerank(keep_text=1)),
    ("model", lambda: rerank(model="x" * 201)),
]


@pytest.mark.parametrize(("field", "make"), INVALID)
def test_invalid_input_names_its_field_without_quoting_it(
    field: str, make: Callable[[], object]
) -> None:
    with pytest.raises(InvalidInput) as caught:
        make()
    assert caught.value.field == field
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


def test_classification_payload() -> None:
    job = classify("law", Label("poetry", "songs", ["sing!"]), threshold=1, model="m")
    prepared = job.prepare(plain_digest)
    assert json.loads(prepared.payload) == {
        "text": "some text",
        "labels": [
            {"name": "law", "description": None, "examples": []},
            {"name": "poetry", "description": "songs", "examples": ["sing!"]},
        ],
        "multi": False,
        "threshold": 1.0,
    }
    assert (prepared.kind, prepared.pool, prepared.model) == ("classification", None, "m")
    assert (prepared.cost, prepared.keep_payload, prepared.documents) == (1, True, ())
    long = Classification("x" * 5000, keep_text=False).prepare(plain_digest)
    assert (long.cost, long.keep_payload) == (5, False)


def test_rerank_payload() -> None:
    prepared = rerank("größer", "b", limit=1).prepare(plain_digest)
    assert json.loads(prepared.payload) == {
        "query": "a query", "passages": ["größer", "b"], "limit": 1
    }  # fmt: skip
    assert (prepared.kind, prepared.pool, prepared.cost) == ("rerank", None, 1)
    # The model reads the query with each passage.
    assert Rerank("q" * 1024, passages=["a"] * 8).prepare(plain_digest).cost == 9


def test_payload_over_the_limit_is_refused() -> None:
    half = "x" * (PAYLOAD_LIMIT // 2)
    with pytest.raises(PayloadTooLarge):
        Classification(half, labels=["a", Label("b", examples=[half])]).prepare(plain_digest)
    with pytest.raises(PayloadTooLarge):
        rerank(half, half).prepare(plain_digest)


def test_repr_shows_no_text() -> None:
    job = Classification(SECRET, labels=[SECRET, Label("b", SECRET)])
    assert SECRET not in repr(job)
    assert SECRET not in repr(job.labels)
    assert SECRET not in repr(Rerank(SECRET, [SECRET]))


def test_results_are_parsed() -> None:
    chosen = ClassificationResult.from_json(
        {
            "labels": [{"label": "law", "score": 0.75}],
            "abstained": False,
            "scores": [{"label": "law", "score": 0.75}, {"label": "poetry", "score": 0.25}],
        }
    )
    assert (chosen.label, chosen.abstained, len(chosen.scores)) == ("law", False, 2)
    assert chosen.normalised is None
    none = ClassificationResult.from_json({"labels": [], "abstained": True})
    assert (none.label, none.abstained, none.scores) == (None, True, ())
    ranked = RerankResult.from_json(
        {"ranking": [{"index": 2, "score": 1}, {"index": 0, "score": -1}]}
    )
    assert ranked.ranking == (Ranked(2, 1.0), Ranked(0, -1.0))
