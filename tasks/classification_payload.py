"""Payload and result of a classification job, whatever kind of model serves it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tasks.protocol import BadPayload, Job, text_of
from vestry.jobs.classification import LabelScore

MULTI_THRESHOLD: Final = 0.5
"""Least score of a label with `multi`, if the job names no threshold."""
MAX_SCORES: Final = 20
"""Scores that a result keeps: of 140 languages, most are close to zero."""
DECIMALS: Final = 6


@dataclass(frozen=True, slots=True)
class LabelSpec:
    """A label to choose from; see `vestry.jobs.classification.Label`."""

    name: str = field(repr=False)
    description: str | None = field(default=None, repr=False)
    examples: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class LabelPlan:
    """One job's request, read from its payload. Without labels, the model of its task defines them."""

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
        all_chosen: bool = False,
    ) -> dict[str, Any]:
        """The job's result: the labels whose score reaches the threshold.

        Args:
            scores: the best first; empty if the text has no evidence for any label.
            normalised: canonical form of a passage reference.
            all_chosen: the model has chosen these labels; only the job's own threshold applies.
        """
        threshold = self.threshold
        if threshold is None:
            threshold = MULTI_THRESHOLD if self.multi and not all_chosen else 0.0
        candidates = scores if self.multi else scores[:1]
        chosen = [one for one in candidates if one.score >= threshold]
        result = {"labels": _to_json(chosen), "abstained": not chosen}
        result["scores"] = _to_json(scores[:MAX_SCORES])
        if normalised is not None:
            result["normalised"] = normalised
        return result


def plan_of(job: Job) -> LabelPlan:
    """Read a job's payload.

    Raises:
        BadPayload: it is malformed; the message names the field and nothing of its content.
    """
    payload = job.payload
    if not isinstance(payload, Mapping):
        raise BadPayload("the payload is not an object")
    labels = payload.get("labels", [])
    if not isinstance(labels, list):
        raise BadPayload("labels is not a list")
    specs = tuple(_spec(f"labels[{index}]", label) for index, label in enumerate(labels))
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
        raise BadPayload("threshold is not between 0 and 1")
    return float(value)


def _to_json(scores: Sequence[LabelScore]) -> list[dict[str, Any]]:
    return [{"label": one.label, "score": round(one.score, DECIMALS)} for one in scores]
