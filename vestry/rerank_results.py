"""What a reranking job gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Ranked:
    """A passage by its place in the job's list, from 0, and its score.

    Scores are comparable within one result; their scale is the model's own.
    """

    index: int
    score: float


@dataclass(frozen=True, slots=True)
class RerankResult:
    """The passages, best first; of equal ones the earlier first."""

    ranking: tuple[Ranked, ...]

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> RerankResult:
        """From the worker's `{"ranking": [{"index", "score"}]}`."""
        return cls(tuple(Ranked(int(r["index"]), float(r["score"])) for r in body["ranking"]))
