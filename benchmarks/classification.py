"""Classification by each kind of model, on texts whose labels are known, through a real stack.

Verses of the Bible by the kind of their book, journal sentences by topic, sentences by language. The
verses want the whole Bible: `--texts FILE` of `REFERENCE text` lines.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

from benchmarks.confusion import Confusion
from benchmarks.labelled_texts import Labelled, Task, sentences, topics, verses
from benchmarks.options import Options
from benchmarks.report import Outcome, percentile
from benchmarks.stand import Stand, stand
from vestry import Classification, ClassificationResult, JobFailed, Label
from workers.llama_server import NoModelError, model_file

PROCESSES = ("dispatcher", "reconciler", "private-interactive-gpu", "llama-interactive")
SETTINGS = {"VESTRY_OLLAMA": "off", "VESTRY_LLAMA": "auto"}
SIMILARITY = "all-MiniLM-L6-v2"
LLM = "SmolLM2-135M-Instruct"
LANGID = "py3langid"
EXAMPLES = 12
TEXTS = 30
"""Verses of each kind of book, at the full share."""
LANGUAGE_AIM = 0.95
TIMEOUT_S = 900.0
WHO: dict[str, Any] = {"owner": "ann", "privacy": "private", "latency": "interactive"}


@dataclass(frozen=True, slots=True)
class Side:
    """One way to classify, by the model that it names.

    Attributes:
        every: of texts that any number of labels may fit, it gets each n-th: a language model writes
            its answer label by label.
    """

    name: str
    model: str
    task: str | None = None
    every: int = 1


BY_SIMILARITY = Side("similarity", SIMILARITY)
BY_LLM = Side("SmolLM2-135M", LLM, every=3)
BY_LANGID = Side("py3langid", LANGID, "language")


def run(options: Options) -> Outcome:
    """Each task by each model that can do it, one text at a time."""
    outcome = Outcome("Classification")
    both = (BY_SIMILARITY, BY_LLM) if _llm_is_here() else (BY_SIMILARITY,)
    with stand(SETTINGS, PROCESSES) as place:
        genres = verses(options.texts, EXAMPLES, options.scaled(TEXTS))
        if genres is None:
            print(f"{options.texts.name} is not the whole Bible: verses are not measured.")
        else:
            same, other = genres["same books"], genres["other books"]
            for side in both:
                _measure(place, outcome, "verses", same, side)
            _measure(place, outcome, "verses of other books", other, BY_SIMILARITY)
            _measure(place, outcome, "verses, no examples", _described(same), BY_SIMILARITY)
        for side in both:
            _measure(place, outcome, "topics", topics(), side)
            _several(place, outcome, topics(), side)
        for side in (*both, BY_LANGID):
            aim = 100 * LANGUAGE_AIM if side is BY_LANGID else None
            _measure(place, outcome, "languages", sentences(), side, at_least=aim)
    return outcome


def _llm_is_here() -> bool:
    try:
        model_file()
    except NoModelError as error:
        print(f"No language model is measured: {error}.")
        return False
    return True


def _described(task: Task) -> Task:
    return replace(task, labels=tuple(Label(one.name, one.description) for one in task.labels))


def _measure(
    place: Stand,
    outcome: Outcome,
    name: str,
    task: Task,
    side: Side,
    *,
    at_least: float | None = None,
) -> None:
    """Accuracy on the texts of one label, and how long one text takes from enqueue to result."""
    texts = [one for one in task.texts if len(one.labels) == 1]
    named = f"{name}, {side.name}"
    confusion = Confusion(named, task.names)
    times: list[float] = []
    scores: list[float] = []
    _trip(place, task, texts[0], side)  # the labels' own vectors, or the beginning of the prompt
    for text in texts:
        begun = time.perf_counter()
        given = _trip(place, task, text, side)
        times.append((time.perf_counter() - begun) * 1000)
        confusion.add(text.labels[0], None if given is None else given.label)
        scores += [one.score for one in given.labels] if given is not None else []
    outcome.confusions.append(confusion)
    outcome.rounds[f"{named}, ms"] = times
    note = f"{len(texts)} texts, {len(task.labels)} labels"
    outcome.add(named, 100 * confusion.accuracy, "% right", note=note, at_least=at_least)
    outcome.add("  mean score", 100 * mean(scores), "%", note="what it claims to be right")
    outcome.add("  one text, p50", percentile(times, 0.5), "ms", note="from enqueue to result")
    outcome.add("  one text, p95", percentile(times, 0.95), "ms")


def _several(place: Stand, outcome: Outcome, task: Task, side: Side) -> None:
    """How well any number of labels is given: F1 over all pairs of text and label."""
    both = wanted = given = 0
    texts = task.texts[:: side.every]
    for text in texts:
        found = _trip(place, task, text, side, multi=True)
        names = set() if found is None else {one.label for one in found.labels}
        both += len(names & set(text.labels))
        wanted += len(text.labels)
        given += len(names)
    f1 = 200 * both / (wanted + given)
    note = f"{len(texts)} texts, some of two topics, some of none"
    outcome.add(f"topics, any number, {side.name}", f1, "% F1", note=note)


def _trip(
    place: Stand, task: Task, text: Labelled, side: Side, *, multi: bool = False
) -> ClassificationResult | None:
    """One text's result; None where the model named no label."""
    labels = task.names if side is BY_LANGID else task.labels
    job = Classification(text.text, labels=labels, multi=multi, model=side.model)
    reference = place.vestry.enqueue(place.conn, job, task=side.task, **WHO)
    try:
        found = place.vestry.wait(reference, timeout=TIMEOUT_S)
    except JobFailed as error:
        if error.code != "no_label":
            raise
        return None
    assert isinstance(found, ClassificationResult)
    return found
