"""The classification kind: by similarity, and by the built-in classifiers."""

from __future__ import annotations

import json
from collections.abc import Sequence
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
from tests.faulty_echo import FaultyEchoModel
from tests.labelling import SECRET, TOPICS, a_context, failed, job, result, run
from tests.routing import NotingGuard, router
from vestry.jobs.classification import Label

ROOT = Path(__file__).resolve().parents[2]


class Recording(FaultyEchoModel):
    """Remembers what it was asked to embed."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[list[str], bool]] = []

    def embed(self, texts: Sequence[str], input: Any = "document", *, urgent: bool = False) -> Any:  # noqa: A002
        self.calls.append((list(texts), urgent))
        return super().embed(texts, input, urgent=urgent)


def test_the_label_whose_description_is_nearest_is_given_with_its_score() -> None:
    (outcome,) = run(FaultyEchoModel(), job("the doctors gave me medicine"))
    found = result(outcome)
    assert (found.label, found.abstained, len(found.labels)) == ("health", False, 1)
    assert found.scores[0].label == "health"
    assert {one.label for one in found.scores} == {"health", "money", "travel"}
    assert sum(one.score for one in found.scores) == pytest.approx(1, abs=1e-5)
    assert isinstance(outcome, Succeeded)
    assert outcome.served is not None
    assert (outcome.served.model, outcome.served.degraded) == ("only", False)
    assert outcome.served.input_tokens == 9


def test_examples_are_as_good_as_a_description() -> None:
    labels = [
        Label("one", examples=["the cat sat on the mat", "a cat and a mat"]),
        Label("two", examples=["stocks and bonds fell", "bonds were sold"]),
    ]
    found = result(run(FaultyEchoModel(), job("bonds fell today", labels))[0])
    assert found.label == "two"


def test_below_the_threshold_no_label_is_given() -> None:
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


def test_with_multi_each_label_is_judged_by_itself() -> None:
    both, none, one = run(
        FaultyEchoModel(),
        job("medicine doctors and debts bills", multi=True),
        job("nothing of the kind", multi=True),
        job("trains hotels", [TOPICS[2]], multi=True),
    )
    assert {given.label for given in result(both).labels} == {"health", "money"}
    scores = [given.score for given in result(both).labels]
    assert scores == sorted(scores, reverse=True)
    assert result(none).abstained
    assert result(one).label == "travel"


def test_a_text_longer_than_the_model_reads_is_classified_whole() -> None:
    text = "some words of no account. " * 200 + "doctors medicine illness pain. " * 400
    assert result(run(FaultyEchoModel(), job(text))[0]).label == "health"


def test_a_batch_is_embedded_in_one_call_and_each_text_once() -> None:
    model = Recording()
    jobs = [job(f"text number {n} of doctors") for n in range(20)]
    outcomes = run(model, *jobs, job("text number 3 of doctors", latency="interactive"))
    assert all(result(outcome).label == "health" for outcome in outcomes)
    (bulk, _), (interactive, urgent) = model.calls
    # Twenty texts, and two for each label.
    assert len(bulk) == len(set(bulk)) == 20 + 6
    assert (interactive, urgent) == (["text number 3 of doctors"], True)


def test_a_known_set_of_labels_costs_nothing_more() -> None:
    model = Recording()
    handler = ClassificationHandler(router("classification", {"only": model}))
    run(handler, job("first of doctors"))
    model.calls.clear()
    assert result(run(handler, job("second of doctors"))[0]).label == "health"
    assert [texts for texts, _ in model.calls] == [["second of doctors"]]
    # Another description is another set, and so is the same one of another owner.
    model.calls.clear()
    changed = [Label("health", "something else"), *TOPICS[1:]]
    run(handler, job("third", changed), job("fourth", owner="bob"))
    assert len(model.calls[0][0]) == 2 + 6 + 2


def test_nothing_readable_is_kept_of_labels() -> None:
    handler = ClassificationHandler(router("classification", {"only": FaultyEchoModel()}))
    run(handler, job("a text", [Label(SECRET, "what is", ["an example"]), "other"]))
    kept = handler._similarity._sets._sets
    assert len(kept) == 1
    ((key, (made, _)),) = kept.items()
    assert len(key) == 32
    told = repr(kept) + repr([getattr(made, name) for name in made.__slots__])
    assert SECRET not in told
    assert "example" not in told


def test_a_text_at_fault_fails_alone() -> None:
    fine, refused, also_fine = run(
        FaultyEchoModel(), job("doctors"), job(f"echo!refused {SECRET}"), job("bills and debts")
    )
    assert [result(fine).label, result(also_fine).label] == ["health", "money"]
    assert failed(refused).code == "backend_refused"
    bad_label = job("doctors", [Label(f"echo!refused {SECRET}"), "other"])
    told = failed(run(FaultyEchoModel(), bad_label)[0])
    assert (told.code, told.message.startswith("a label's text: ")) == ("backend_refused", True)


def test_an_abandoned_job_costs_nothing() -> None:
    model = Recording()
    gone, alive = job("doctors gone"), job("doctors alive")
    outcomes = run(model, gone, alive, context=a_context(gone.id))
    assert failed(outcomes[0]).code == "abandoned"
    assert result(outcomes[1]).label == "health"
    assert "doctors gone" not in model.calls[0][0]


def test_without_labels_there_is_nothing_to_choose_from() -> None:
    fine, bare = run(FaultyEchoModel(), job("doctors"), job("doctors", []))
    assert result(fine).label == "health"
    assert failed(bare).code == "no_labels"
    assert not failed(bare).retryable


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
def test_a_bad_payload_fails_alone_and_is_not_quoted(payload: Any) -> None:
    bad, fine = run(FaultyEchoModel(), job("x", payload=payload), job("doctors"))
    assert failed(bad).code == "bad_payload"
    assert result(fine).label == "health"


class Broken(FaultyEchoModel):
    """Cannot be called."""

    def __init__(self, error: InferenceError) -> None:
        super().__init__()
        self.error = error

    def embed(self, *_: Any, **__: Any) -> Any:
        raise self.error


def test_a_model_that_is_away_hands_its_batch_to_the_next() -> None:
    gate = NotingGuard()
    both = router(
        "classification",
        {"first": Broken(BackendUnavailable()), "second": FaultyEchoModel()},
        gate=gate,
    )
    outcomes = run(both, job("doctors"), job("bills"))
    assert [result(outcome).label for outcome in outcomes] == ["health", "money"]
    for outcome in outcomes:
        assert isinstance(outcome, Succeeded)
        assert outcome.served is not None
        assert (outcome.served.model, outcome.served.intended_model) == ("second", "first")
        assert (outcome.served.degraded, outcome.served.reason) == (True, "backend_unavailable")
    assert gate.passed == ["first", "second"]


def test_a_batch_that_nothing_serves_waits_or_goes_elsewhere() -> None:
    away = router("classification", {"only": FaultyEchoModel()}, gate=NotingGuard({"only": "open"}))
    for outcome in run(away, job("doctors"), job("bills")):
        assert failed(outcome).uncounted
        assert failed(outcome).retry_after == 7
    elsewhere = router("classification", {"far": FaultyEchoModel()}, cloud=("far",))
    (moved,) = run(elsewhere, job("doctors"))
    assert isinstance(moved, Rerouted)
    assert moved.pool == "cloud"


# -- built in -------------------------------------------------------------------------------------


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


def test_the_language_task_brings_its_labels() -> None:
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


def test_the_reference_task_says_valid_and_how_it_is_written() -> None:
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


# -- with a real model ----------------------------------------------------------------------------

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


def test_journal_sentences_find_their_topics(minilm: SentenceTransformersModel) -> None:
    lines = (ROOT / "samples" / "topics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    labels = [Label(name, told) for name, told in DESCRIBED.items()]
    handler = ClassificationHandler(router("classification", {"only": minilm}))
    single = [row for row in rows if len(row["labels"]) == 1]
    outcomes = run(handler, *(job(row["text"], labels) for row in single))
    right = [result(o).label == row["labels"][0] for o, row in zip(outcomes, single, strict=True)]
    assert sum(right) / len(right) >= 0.85
    # Nine in ten of what is about none of them is told to be about none of them.
    others = [row for row in rows if not row["labels"]]
    outcomes = run(handler, *(job(row["text"], labels, multi=True) for row in others))
    assert sum(result(outcome).abstained for outcome in outcomes) >= len(others) - 1
    # Several at once: wanted and given labels overlap.
    outcomes = run(handler, *(job(row["text"], labels, multi=True) for row in rows))
    pairs = [
        ({given.label for given in result(o).labels}, set(row["labels"]))
        for o, row in zip(outcomes, rows, strict=True)
    ]
    both = sum(len(given & wanted) for given, wanted in pairs)
    f1 = 2 * both / sum(len(given) + len(wanted) for given, wanted in pairs)
    assert f1 >= 0.8
