"""What a classification job gives back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


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
