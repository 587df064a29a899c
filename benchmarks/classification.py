"""Accuracy and latency of classification by each kind of model, on a real stack.

Verses of the Bible are classified by the kind of their book, journal sentences by topic, sentences by
language. The verses need the whole Bible: `--texts FILE` of `REFERENCE text` lines.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

from benchmarks.bench_stack import BenchStack, bench_stack
from benchmarks.confusion import ConfusionMatrix
from benchmarks.labelled_texts import LabelledText, Task, sentences, topics, verses
from benchmarks.options import Options
from benchmarks.report import BenchmarkResult, percentile
from vestry import Classification, ClassificationResult, JobFailed, Label
from workers.llama_server import NoModelError, model_file

PROCESSES = ("dispatcher", "reconciler", "private-interactive-gpu", "llama-interactive")
SETTINGS = {"VESTRY_OLLAMA": "off", "VESTRY_LLAMA": "auto"}
SIMILARITY = "all-MiniLM-L6-v2"
LLM = "SmolLM2-135M-Instruct"
LANGID = "py3langid"
EXAMPLES = 12
TEXTS = 30
"""Verses of each kind of book, at share 1."""
LANGUAGE_AIM = 0.95
TIMEOUT_S = 900.0
ENQUEUE_OPTIONS: dict[str, Any] = {
    "owner": "ann", "privacy": "private", "latency": "interactive",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Classifier:
    """A model that classifies.

    Attributes:
        every: with any number of labels, only every n-th text is measured: a language model generates
            its answer label by label, which is slow.
    """

    name: str
    model: str
    task: str | None = None
    every: int = 1


BY_SIMILARITY = Classifier("similarity", SIMILARITY)
BY_LLM = Classifier("SmolLM2-135M", LLM, every=3)
BY_LANGID = Classifier("py3langid", LANGID, "language")


def run(options: Options) -> BenchmarkResult:
    """Measure each task with each model that supports it, one text at a time."""
    result = BenchmarkResult("Classification")
    classifiers = (BY_SIMILARITY, BY_LLM) if _llm_installed() else (BY_SIMILARITY,)
    with bench_stack(SETTINGS, PROCESSES) as stack:
        genres = verses(options.texts, EXAMPLES, options.scaled(TEXTS))
        if genres is None:
            print(f"{options.texts.name} is not the whole Bible: verses are not measured.")
        else:
            same, other = genres["same books"], genres["other books"]
            for classifier in classifiers:
                _measure_single_label(stack, result, "verses", same, classifier)
            name = "verses of other books"
            _measure_single_label(stack, result, name, other, BY_SIMILARITY)
            name, task = "verses, no examples", _without_examples(same)
            _measure_single_label(stack, result, name, task, BY_SIMILARITY)
        for classifier in classifiers:
            _measure_single_label(stack, result, "topics", topics(), classifier)
            _measure_any_number(stack, result, topics(), classifier)
        for classifier in (*classifiers, BY_LANGID):
            aim = 100 * LANGUAGE_AIM if classifier is BY_LANGID else None
            task = sentences()
            _measure_single_label(stack, result, "languages", task, classifier, at_least=aim)
    return result


def _llm_installed() -> bool:
    try:
        model_file()
    except NoModelError as error:
        print(f"The language model is not measured: {error}.")
        return False
    return True


def _without_examples(task: Task) -> Task:
    labels = tuple(Label(label.name, label.description) for label in task.labels)
    return replace(task, labels=labels)


def _measure_single_label(
    stack: BenchStack,
    result: BenchmarkResult,
    name: str,
    task: Task,
    classifier: Classifier,
    *,
    at_least: float | None = None,
) -> None:
    """Accuracy on the texts with one label, and the duration of one text from enqueue to result."""
    texts = [text for text in task.texts if len(text.labels) == 1]
    title = f"{name}, {classifier.name}"
    confusion = ConfusionMatrix(title, task.names)
    times: list[float] = []
    scores: list[float] = []
    # Not measured: the first text includes the cost of the labels' vectors or the prompt's prefix.
    _classify(stack, task, texts[0], classifier)
    for text in texts:
        started = time.perf_counter()
        classified = _classify(stack, task, text, classifier)
        times.append((time.perf_counter() - started) * 1000)
        confusion.add(text.labels[0], None if classified is None else classified.label)
        scores += [label.score for label in classified.labels] if classified is not None else []
    result.confusion_matrices.append(confusion)
    result.rounds[f"{title}, ms"] = times
    note = f"{len(texts)} texts, {len(task.labels)} labels"
    result.add(title, 100 * confusion.accuracy, "% right", note=note, at_least=at_least)
    result.add("  mean score", 100 * mean(scores), "%", note="the model's own estimate")
    result.add("  one text, p50", percentile(times, 0.5), "ms", note="from enqueue to result")
    result.add("  one text, p95", percentile(times, 0.95), "ms")


def _measure_any_number(
    stack: BenchStack, result: BenchmarkResult, task: Task, classifier: Classifier
) -> None:
    """F1 of any number of labels, over all pairs of text and label."""
    correct = expected = predicted = 0
    texts = task.texts[:: classifier.every]
    for text in texts:
        classified = _classify(stack, task, text, classifier, multi=True)
        names = set() if classified is None else {label.label for label in classified.labels}
        correct += len(names & set(text.labels))
        expected += len(text.labels)
        predicted += len(names)
    f1 = 200 * correct / (expected + predicted)
    note = f"{len(texts)} texts, some of two topics, some of none"
    result.add(f"topics, any number, {classifier.name}", f1, "% F1", note=note)


def _classify(
    stack: BenchStack,
    task: Task,
    text: LabelledText,
    classifier: Classifier,
    *,
    multi: bool = False,
) -> ClassificationResult | None:
    """Classify one text; None if the model named no label."""
    labels = task.names if classifier is BY_LANGID else task.labels
    job = Classification(text.text, labels=labels, multi=multi, model=classifier.model)
    reference = stack.vestry.enqueue(stack.conn, job, task=classifier.task, **ENQUEUE_OPTIONS)
    try:
        classified = stack.vestry.wait(reference, timeout=TIMEOUT_S)
    except JobFailed as error:
        if error.code != "no_label":
            raise
        return None
    assert isinstance(classified, ClassificationResult)
    return classified
