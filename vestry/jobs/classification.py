"""What a producer asks for with `Classification`: which of some labels fits a text."""

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
"""Of one label."""


@dataclass(frozen=True, slots=True)
class Label:
    """One of the labels to choose from.

    Attributes:
        name: what the result calls it; 1 to 200 characters, no two alike.
        description: what it is about, in a sentence; most models choose better with one.
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
    """Which label fits a text, or which labels do.

    Two tasks, told at enqueue, bring their own labels: `task="language"` answers with ISO 639-1 codes,
    all that it knows or those given here, and `task="passage-reference"` with `valid` or `invalid`.

    Attributes:
        text: what to classify, of any length.
        labels: names, or `Label`s with descriptions and examples; up to 200.
        multi: any number of labels may fit, each by itself; otherwise exactly one does.
        threshold: score, 0 to 1, below which a label is not given. By default the best label is given
            however low it scores, and with `multi` every label from 0.5 on.
        model: a name the workers know; by default the one that routing chooses.
        keep_text: False keeps nothing of text and labels once the job has succeeded.
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
            raise InvalidInput("labels", "is not a list")
        made = tuple(Label(one) if isinstance(one, str) else one for one in self.labels)
        object.__setattr__(self, "labels", made)
        _check_labels(made)
        for name in ("multi", "keep_text"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidInput(name, "is neither True nor False")
        if len(made) == 1 and not self.multi:
            raise InvalidInput("labels", "needs two to choose from; one is enough with multi=True")
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
        del digest  # nothing here is compared unread
        labels = [
            {"name": one.name, "description": one.description, "examples": list(one.examples)}
            for one in self.labels
            if isinstance(one, Label)
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
        raise InvalidInput("labels", f"are {len(labels)}; there may be {LABELS_MAX}")
    seen: dict[str, int] = {}
    for place, label in enumerate(labels):
        name = f"labels[{place}]"
        if not isinstance(label, Label):
            raise InvalidInput(name, "is neither a name nor a Label")
        check_label(f"{name}.name", label.name)
        first = seen.setdefault(label.name, place)
        if first != place:
            raise InvalidInput(f"{name}.name", f"repeats labels[{first}]")
        if label.description is not None:
            check_text(f"{name}.description", label.description)
        if not isinstance(label.examples, tuple):
            raise InvalidInput(f"{name}.examples", "is not a list")
        if len(label.examples) > EXAMPLES_MAX:
            raise InvalidInput(
                f"{name}.examples", f"are {len(label.examples)}; there may be {EXAMPLES_MAX}"
            )
        for number, example in enumerate(label.examples):
            check_text(f"{name}.examples[{number}]", example)


def _share(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidInput(name, "is not a number")
    if not math.isfinite(value) or not 0 <= value <= 1:
        raise InvalidInput(name, "must be 0 to 1")
    return float(value)


# What a classification job gives back.


@dataclass(frozen=True, slots=True)
class LabelScore:
    """A label and how likely it is to fit, 0 to 1."""

    label: str
    score: float


@dataclass(frozen=True, slots=True)
class ClassificationResult:
    """The labels that fit, and only such as were to choose from.

    Attributes:
        labels: what was given, best first: exactly one, with `multi` any number; none where the model
            abstained.
        abstained: no label reached the threshold.
        scores: of every label that was looked at, best first, also of those that were not given. A
            language model tells of none but the given.
        normalised: of a passage reference, in its usual form; None for other tasks and malformed ones.
    """

    labels: tuple[LabelScore, ...]
    abstained: bool
    scores: tuple[LabelScore, ...] = field(default=(), repr=False)
    normalised: str | None = None

    @property
    def label(self) -> str | None:
        """The best label; None where the model abstained."""
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
