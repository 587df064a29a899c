"""Classification jobs: which of some labels fit a text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

from vestry.errors import InvalidInput, PayloadTooLarge
from vestry.jobs.base import COST_BYTES, Digest, Prepared
from vestry.lanes import Kind
from vestry.validation import PAYLOAD_LIMIT, check_label, check_text, dump_json

LABELS_MAX: Final = 200
EXAMPLES_MAX: Final = 100
"""Most examples of one label."""


@dataclass(frozen=True, slots=True)
class Label:
    """One of the labels to choose from.

    Attributes:
        name: its name in the result; 1 to 200 characters, unique.
        description: its meaning, in a sentence; most models choose better with one.
        examples: texts that have this label, up to 100; five already help.
    """

    name: str
    description: str | None = None
    examples: Sequence[str] = ()

    def __post_init__(self) -> None:
        if isinstance(self.examples, Sequence) and not isinstance(self.examples, (str, bytes)):
            object.__setattr__(self, "examples", tuple(self.examples))

    def __repr__(self) -> str:
        return "Label(…)"


@dataclass(frozen=True, slots=True)
class Classification:
    """The label of a text, or its labels.

    Two tasks, set at enqueue, have labels of their own: `task="language"` returns ISO 639-1 codes, of
    all languages or of those in `labels`; `task="passage-reference"` returns `valid` or `invalid`.

    Attributes:
        text: the text to classify, of any length.
        labels: names, or `Label`s with descriptions and examples; up to 200.
        multi: any number of labels may fit, independently; otherwise exactly one does.
        threshold: lowest score, 0 to 1, of a label in the result. By default the best label is
            returned whatever its score, and with `multi` every label from 0.5 on.
        model: a model's name in the catalogue; by default routing chooses.
        keep_text: False deletes text and labels once the job has succeeded.
    """

    text: str
    labels: Sequence[str | Label] = ()
    multi: bool = False
    threshold: float | None = None
    model: str | None = None
    keep_text: bool = True
    kind: ClassVar[Kind] = "classification"

    def __post_init__(self) -> None:
        check_text("text", self.text)
        if isinstance(self.labels, (str, bytes)) or not isinstance(self.labels, Sequence):
            raise InvalidInput("labels", "must be a list")
        labels = tuple(Label(label) if isinstance(label, str) else label for label in self.labels)
        object.__setattr__(self, "labels", labels)
        _check_labels(labels)
        for name in ("multi", "keep_text"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidInput(name, "must be True or False")
        if len(labels) == 1 and not self.multi:
            raise InvalidInput("labels", "must be two or more; one is enough with multi=True")
        if self.threshold is not None:
            object.__setattr__(self, "threshold", _share("threshold", self.threshold))
        if self.model is not None:
            check_label("model", self.model)

    def __repr__(self) -> str:
        return f"Classification({len(self.text)} characters, {len(self.labels)} labels)"

    def prepare(self, digest: Digest, payload_limit: int = PAYLOAD_LIMIT) -> Prepared:
        """Serialise: `{"text", "labels": [{"name", "description", "examples"}], "multi", "threshold"}`.

        Raises:
            PayloadTooLarge: over `payload_limit` bytes.
        """
        del digest  # only documents are digested
        labels = [
            {
                "name": label.name,
                "description": label.description,
                "examples": list(label.examples),
            }
            for label in self.labels
            if isinstance(label, Label)
        ]
        body = {
            "text": self.text,
            "labels": labels,
            "multi": self.multi,
            "threshold": self.threshold,
        }
        payload = dump_json("text", body)
        if len(payload) > payload_limit:
            raise PayloadTooLarge("text", len(payload), payload_limit)
        return Prepared(
            kind=self.kind,
            pool=None,
            model=self.model,
            payload=payload,
            cost=1 + len(self.text.encode()) // COST_BYTES,
            keep_payload=self.keep_text,
        )


def _check_labels(labels: Sequence[object]) -> None:
    if len(labels) > LABELS_MAX:
        raise InvalidInput("labels", f"has {len(labels)} labels; at most {LABELS_MAX} are allowed")
    seen: dict[str, int] = {}
    for index, label in enumerate(labels):
        name = f"labels[{index}]"
        if not isinstance(label, Label):
            raise InvalidInput(name, "must be a name or a Label")
        check_label(f"{name}.name", label.name)
        first = seen.setdefault(label.name, index)
        if first != index:
            raise InvalidInput(f"{name}.name", f"repeats labels[{first}]")
        if label.description is not None:
            check_text(f"{name}.description", label.description)
        if not isinstance(label.examples, tuple):
            raise InvalidInput(f"{name}.examples", "must be a list")
        if len(label.examples) > EXAMPLES_MAX:
            raise InvalidInput(
                f"{name}.examples",
                f"has {len(label.examples)} examples; at most {EXAMPLES_MAX} are allowed",
            )
        for number, example in enumerate(label.examples):
            check_text(f"{name}.examples[{number}]", example)


def _share(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidInput(name, "must be a number")
    if not math.isfinite(value) or not 0 <= value <= 1:
        raise InvalidInput(name, "must be 0 to 1")
    return float(value)


@dataclass(frozen=True, slots=True)
class LabelScore:
    """A label and its probability, 0 to 1."""

    label: str
    score: float


@dataclass(frozen=True, slots=True)
class ClassificationResult:
    """The labels that fit, all of them from the job's labels.

    Attributes:
        labels: the labels that fit, best first: exactly one, or any number with `multi`; none if the
            model abstained.
        abstained: no label reached the threshold.
        scores: of every label that was scored, best first. A language model scores only those it
            returns.
        normalised: a passage reference in its usual form; None for other tasks and malformed ones.
    """

    labels: tuple[LabelScore, ...]
    abstained: bool
    scores: tuple[LabelScore, ...] = field(default=(), repr=False)
    normalised: str | None = None

    @property
    def label(self) -> str | None:
        """The best label; None if the model abstained."""
        return self.labels[0].label if self.labels else None

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> ClassificationResult:
        """From the worker's JSON, whose keys are the attributes."""
        return cls(
            labels=_scores(body["labels"]),
            abstained=bool(body["abstained"]),
            scores=_scores(body.get("scores", ())),
            normalised=body.get("normalised"),
        )


def _scores(rows: Sequence[Mapping[str, Any]]) -> tuple[LabelScore, ...]:
    return tuple(LabelScore(str(row["label"]), float(row["score"])) for row in rows)
