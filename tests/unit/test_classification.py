"""The classification handler: by similarity, and by the built-in classifiers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from inference.backends.builtin import ReferenceClassifier
from inference.backends.sentence_transformers_local import SentenceTransformersModel
from inference.classifiers.language_id import LanguageClassifier
from inference.errors import BackendUnavailable, InferenceError
from inference.routing.router import Router
from tasks.classification import ClassificationHandler
from tasks.protocol import Rerouted, Succeeded
from tests.classification_jobs import SECRET, TOPICS, context_of, failed, job, result, run
from tests.faulty_echo import FaultyEchoModel
from tests.handler_fakes import FakeGuard, RecordingModel, router
from vestry.jobs.classification import Label

ROOT = Path(__file__).resolve().parents[2]


def test_label_with_nearest_description_is_chosen() -> None:
    (outcome,) = run(FaultyEchoModel(), job("the doctors gave me medicine"))
    classified = result(outcome)
    assert (classified.label, classified.abstained, len(classified.labels)) == ("health", False, 1)
    assert classified.scores[0].label == "health"
    assert {one.label for one in classified.scores} == {"health", "money", "travel"}
    assert sum(one.score for one in classified.scores) == pytest.approx(1, abs=1e-5)
    assert isinstance(outcome, Succeeded)
    assert outcome.served is not None
    assert (outcome.served.model, outcome.served.degraded) == ("only", False)
    assert outcome.served.input_tokens == 9


def test_label_with_nearest_examples_is_chosen() -> None:
    labels = [
        Label("one", examples=["the cat sat on the mat", "a cat and a mat"]),
        Label("two", examples=["stocks and bonds fell", "bonds were sold"]),
    ]
    classified = result(run(FaultyEchoModel(), job("bonds fell today", labels))[0])
    assert classified.label == "two"


def test_no_label_below_threshold() -> None:
    sure, unsure = run(
        FaultyEchoModel(),
        job("medicine from doctors for pain", threshold=0.8),
        job("nothing of the kind", threshold=0.8),
    )
    assert result(sure).label == "health"
    assert result(unsure).labels == ()
    assert result(unsure).abstained
    assert result(unsure).label is None
    assert len(result(unsure).scores) == 3


def test_multi_labels_are_independent() -> None:
    both, none, one = run(
        FaultyEchoModel(),
        job("medicine doctors and debts bills", multi=True),
        job("nothing of the kind", multi=True),
        job("trains hotels", [TOPICS[2]], multi=True),
    )
    assert {one.label for one in result(both).labels} == {"health", "money"}
    scores = [one.score for one in result(both).labels]
    assert scores == sorted(scores, reverse=True)
    assert result(none).abstained
    assert result(one).label == "travel"


def test_long_text_is_classified_as_a_whole() -> None:
    text = "some words of no account. " * 200 + "doctors medicine illness pain. " * 400
    assert result(run(FaultyEchoModel(), job(text))[0]).label == "health"


def test_batch_is_embedded_in_one_call_and_each_text_once() -> None:
    model = RecordingModel()
    jobs = [job(f"text number {n} of doctors") for n in range(20)]
    outcomes = run(model, *jobs, job("text number 3 of doctors", latency="interactive"))
    assert all(result(outcome).label == "health" for outcome in outcomes)
    (bulk, _, _), (interactive, _, urgent) = model.calls
    # Twenty texts, and two for each label.
    assert len(bulk) == len(set(bulk)) == 20 + 6
    assert (interactive, urgent) == (["text number 3 of doctors"], True)


def test_cached_label_set_is_not_embedded_again() -> None:
    model = RecordingModel()
    handler = ClassificationHandler(router("classification", {"only": model}))
    run(handler, job("first of doctors"))
    model.calls.clear()
    assert result(run(handler, job("second of doctors"))[0]).label == "health"
    assert [texts for texts, _, _ in model.calls] == [["second of doctors"]]
    # Another description or another owner makes another label set.
    model.calls.clear()
    changed = [Label("health", "something else"), *TOPICS[1:]]
    run(handler, job("third", changed), job("fourth", owner="bob"))
    assert len(model.calls[0][0]) == 2 + 6 + 2


def test_cache_holds_no_text_of_labels() -> None:
    handler = ClassificationHandler(router("classification", {"only": FaultyEchoModel()}))
    run(handler, job("a text", [Label(SECRET, "what is", ["an example"]), "other"]))
    cached = handler._similarity._sets._sets
    assert len(cached) == 1
    ((key, (label_set, _)),) = cached.items()
    assert len(key) == 32
    shown = repr(cached) + repr([getattr(label_set, name) for name in label_set.__slots__])
    assert SECRET not in shown
    assert "example" not in shown


def test_refused_text_fails_its_own_job() -> None:
    fine, refused, also_fine = run(
        FaultyEchoModel(), job("doctors"), job(f"echo!refused {SECRET}"), job("bills and debts")
    )
    assert [result(fine).label, result(also_fine).label] == ["health", "money"]
    assert failed(refused).code == "backend_refused"
    bad_label = job("doctors", [Label(f"echo!refused {SECRET}"), "other"])
    failure = failed(run(FaultyEchoModel(), bad_label)[0])
    assert (failure.code, failure.message.startswith("a label's text: ")) == (
        "backend_refused",
        True,
    )


def test_cancelled_job_is_not_embedded() -> None:
    model = RecordingModel()
    cancelled, other = job("doctors cancelled"), job("doctors remain")
    outcomes = run(model, cancelled, other, context=context_of(cancelled.id))
    assert failed(outcomes[0]).code == "abandoned"
    assert result(outcomes[1]).label == "health"
    assert "doctors cancelled" not in model.calls[0][0]


def test_job_without_labels_fails() -> None:
    fine, unlabelled = run(FaultyEchoModel(), job("doctors"), job("doctors", []))
    assert result(fine).label == "health"
    assert failed(unlabelled).code == "no_labels"
    assert not failed(unlabelled).retryable


@pytest.mark.parametrize(
    "payload",
    [
        None, {}, {"text": " "}, {"text": 7}, {"text": f"{SECRET}\0"}, {"text": f"{SECRET}\ud800"},
        {"text": "a", "labels": "ab"}, {"text": "a", "labels": [SECRET]},
        {"text": "a", "labels": [{"name": ""}]}, {"text": "a", "labels": [{"name": SECRET}] * 2},
        {"text": "a", "labels": [{"name": "b", "examples": SECRET}]},
        {"text": "a", "labels": [{"name": "b", "examples": [" "]}]},
        {"text": "a", "labels": [{"name": "b", "description": 7}]},
        {"text": "a", "multi": SECRET}, {"text": "a", "threshold": SECRET},
        {"text": "a", "threshold": 2},
    ],
)  # fmt: skip
def test_invalid_payload_fails_alone_and_is_not_quoted(payload: Any) -> None:
    bad, fine = run(FaultyEchoModel(), job("x", payload=payload), job("doctors"))
    assert failed(bad).code == "bad_payload"
    assert result(fine).label == "health"


class FailingModel(FaultyEchoModel):
    """Raises an error at each call."""

    def __init__(self, error: InferenceError) -> None:
        super().__init__()
        self.error = error

    def embed(self, *_: Any, **__: Any) -> Any:
        raise self.error


def test_batch_of_unavailable_model_is_served_by_next_model() -> None:
    guard = FakeGuard()
    both = router(
        "classification",
        {"first": FailingModel(BackendUnavailable()), "second": FaultyEchoModel()},
        guard=guard,
    )
    outcomes = run(both, job("doctors"), job("bills"))
    assert [result(outcome).label for outcome in outcomes] == ["health", "money"]
    for outcome in outcomes:
        assert isinstance(outcome, Succeeded)
        assert outcome.served is not None
        assert (outcome.served.model, outcome.served.intended_model) == ("second", "first")
        assert (outcome.served.degraded, outcome.served.reason) == (True, "backend_unavailable")
    assert guard.calls == ["first", "second"]


def test_batch_without_available_model_waits_or_is_rerouted() -> None:
    unavailable = router(
        "classification", {"only": FaultyEchoModel()}, guard=FakeGuard(only="open")
    )
    for outcome in run(unavailable, job("doctors"), job("bills")):
        assert failed(outcome).uncounted
        assert failed(outcome).retry_after == 7
    other_pool = router("classification", {"far": FaultyEchoModel()}, cloud=("far",))
    (moved,) = run(other_pool, job("doctors"))
    assert isinstance(moved, Rerouted)
    assert moved.pool == "cloud"


def builtins() -> Router:
    return router(
        "classification",
        {
            "similarity": FaultyEchoModel(),
            "py3langid": LanguageClassifier(),
            "reference-format": ReferenceClassifier(),
        },
        entries={
            "py3langid": {"tasks": ("language",)},
            "reference-format": {"tasks": ("passage-reference",)},
        },
    )


def test_language_task_defines_its_labels() -> None:
    german = "Die alte Kirche auf dem Hügel wurde vor mehr als dreihundert Jahren gebaut."
    free, named, unsure, nothing, unknown = run(
        builtins(),
        job(german, [], task="language"),
        job(german, ["English", "German"], task="language"),
        job("hello", ["English", "French"], task="language", threshold=0.9),
        job("12:30", [], task="language"),
        job(german, ["German", SECRET], task="language"),
    )
    assert result(free).label == "de"
    assert len(result(free).scores) == 20
    assert result(named).label == "German"
    assert (result(unsure).abstained, len(result(unsure).scores)) == (True, 2)
    assert (result(nothing).abstained, result(nothing).scores) == (True, ())
    assert (failed(unknown).code, failed(unknown).retryable) == ("bad_request", False)


def test_reference_task_returns_validity_and_canonical_form() -> None:
    valid, invalid = run(
        builtins(),
        job("1 cor 13:4–7", [], task="passage-reference"),  # noqa: RUF001
        job("Ps 151", [], task="passage-reference"),
    )
    assert (result(valid).label, result(valid).normalised) == ("valid", "1 Corinthians 13:4-7")
    assert (result(invalid).label, result(invalid).normalised) == ("invalid", None)
    assert isinstance(valid, Succeeded)
    assert valid.result == {
        "labels": [{"label": "valid", "score": 1.0}],
        "abstained": False,
        "scores": [{"label": "valid", "score": 1.0}, {"label": "invalid", "score": 0.0}],
        "normalised": "1 Corinthians 13:4-7",
    }


DESCRIBED = {
    "health": "illness, pain, doctors, medicine and recovery",
    "work": "a job, colleagues, meetings, deadlines and careers",
    "family": "parents, children, siblings, marriage and relatives",
    "faith": "prayer, church, scripture, God and doubt",
    "money": "income, debts, savings, bills and prices",
    "travel": "journeys, trains, flights, hotels and foreign places",
    "nature": "weather, gardens, animals, mountains and the sea",
    "food": "cooking, meals, recipes, restaurants and baking",
}


def test_minilm_classifies_journal_sentences_by_topic(minilm: SentenceTransformersModel) -> None:
    lines = (ROOT / "samples" / "topics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    labels = [Label(name, description) for name, description in DESCRIBED.items()]
    handler = ClassificationHandler(router("classification", {"only": minilm}))
    single = [row for row in rows if len(row["labels"]) == 1]
    outcomes = run(handler, *(job(row["text"], labels) for row in single))
    right = [result(o).label == row["labels"][0] for o, row in zip(outcomes, single, strict=True)]
    assert sum(right) / len(right) >= 0.85
    # At most one sentence about none of the topics gets a topic.
    others = [row for row in rows if not row["labels"]]
    outcomes = run(handler, *(job(row["text"], labels, multi=True) for row in others))
    assert sum(result(outcome).abstained for outcome in outcomes) >= len(others) - 1
    # With several topics, expected and predicted labels overlap.
    outcomes = run(handler, *(job(row["text"], labels, multi=True) for row in rows))
    pairs = [
        ({one.label for one in result(o).labels}, set(row["labels"]))
        for o, row in zip(outcomes, rows, strict=True)
    ]
    both = sum(len(predicted & expected) for predicted, expected in pairs)
    f1 = 2 * both / sum(len(predicted) + len(expected) for predicted, expected in pairs)
    assert f1 >= 0.8
