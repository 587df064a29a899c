"""One classification job from payload to result: what it may be given, and which of it is given."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tasks.protocol import BadPayload, Job
from vestry.jobs.classification import LabelScore

MULTI_THRESHOLD: Final = 0.5
"""From which score on a label of several is given, where the job names no threshold."""
SCORES_TOLD: Final = 20
"""Scores that a result keeps: of 140 languages, most are next to nothing."""
DECIMALS: Final = 6


@dataclass(frozen=True, slots=True)
class LabelSpec:
    """A label to choose from; see `vestry.jobs.classification.Label`."""

    name: str = field(repr=False)
    description: str | None = field(default=None, repr=False)
    examples: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class LabelPlan:
    """What one job wants classified. Without labels, its task must bring them."""

    job: Job
    text: str = field(repr=False)
    labels: tuple[LabelSpec, ...]
    multi: bool
    threshold: float | None

    @property
    def names(self) -> tuple[str, ...]:
        """The labels' names."""
        return tuple(label.name for label in self.labels)

    def result(
        self,
        scores: Sequence[LabelScore],
        *,
        normalised: str | None = None,
        all_given: bool = False,
    ) -> dict[str, Any]:
        """The job's result: of what was scored, the labels that are given.

        Args:
            scores: the best first; empty where there is nothing to tell by.
            normalised: of a passage reference.
            all_given: they are the model's choice already; only the job's own threshold counts.
        """
        threshold = self.threshold
        if threshold is None:
            threshold = MULTI_THRESHOLD if self.multi and not all_given else 0.0
        offered = scores if self.multi else scores[:1]
        given = [one for one in offered if one.score >= threshold]
        result = {"labels": _told(given), "abstained": not given}
        result["scores"] = _told(scores[:SCORES_TOLD])
        if normalised is not None:
            result["normalised"] = normalised
        return result


def plan_of(job: Job) -> LabelPlan:
    """Read a job's payload.

    Raises:
        BadPayload: it is malformed; the message names the field and nothing of it.
    """
    payload = job.payload
    if not isinstance(payload, Mapping):
        raise BadPayload("the payload is not an object")
    labels = payload.get("labels", [])
    if not isinstance(labels, list):
        raise BadPayload("labels is not a list")
    specs = tuple(_spec(f"labels[{place}]", label) for place, label in enumerate(labels))
    if len({spec.name for spec in specs}) < len(specs):
        raise BadPayload("two labels have the same name")
    multi = payload.get("multi", False)
    if not isinstance(multi, bool):
        raise BadPayload("multi is neither true nor false")
    return LabelPlan(
        job,
        text_of("text", payload.get("text")),
        specs,
        multi,
        _threshold(payload.get("threshold")),
    )


def text_of(name: str, value: Any) -> str:
    """A text that a model can be given.

    Raises:
        BadPayload: it is none.
    """
    if not isinstance(value, str) or not value.strip():
        raise BadPayload(f"{name} is not a text, or is empty")
    if "\0" in value:
        raise BadPayload(f"{name} holds a NUL character")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadPayload(f"{name} is not valid Unicode") from None
    return value


def _spec(name: str, value: Any) -> LabelSpec:
    if not isinstance(value, Mapping):
        raise BadPayload(f"{name} is not an object")
    description, examples = value.get("description"), value.get("examples") or []
    if not isinstance(examples, list):
        raise BadPayload(f"{name}.examples is not a list")
    return LabelSpec(
        text_of(f"{name}.name", value.get("name")),
        None if description is None else text_of(f"{name}.description", description),
        tuple(text_of(f"{name}.examples[{n}]", text) for n, text in enumerate(examples)),
    )


def _threshold(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadPayload("threshold is not a number")
    if not math.isfinite(value) or not 0 <= value <= 1:
        raise BadPayload("threshold is not 0 to 1")
    return float(value)


def _told(scores: Sequence[LabelScore]) -> list[dict[str, Any]]:
    return [{"label": one.label, "score": round(one.score, DECIMALS)} for one in scores]
