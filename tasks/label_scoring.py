"""Scores of labels by similarity: each label's prototype is compared with the text's vector.

A label's prototype is the direction of its description and its examples; the description counts as
three examples. For topics, descriptions suffice; for properties that are hard to describe, such as
style, a dozen examples help. The mapping of similarities to probabilities is fitted to the examples,
each compared with prototypes made without it. With few or no examples it is the one measured with
all-MiniLM-L6-v2 (`docs/classification.md`); another model's catalogue entry may set the options
`temperature` and `midpoint`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from vestry.jobs.classification import LabelScore

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

DESCRIPTION_WEIGHT: Final = 3.0
"""Examples that a description counts as; accuracy was measured flat between 2 and 5."""
NAME_WEIGHT: Final = 1.0
"""The same for a label without a description."""

TEMPERATURE: Final = 0.04
"""Of the softmax over a text's similarities."""
MIDPOINT: Final = 0.135
"""Excess similarity at which a label fits with probability 0.5, with `multi`."""
UNRELATED: Final = 0.045
"""Similarity of a text to an unrelated label."""

_SLOPE: Final = 0.025
_OTHERS: Final = 0.6
"""Share of a text's mean similarity to the other labels that is subtracted as common to all labels."""
_PRIOR: Final = 10
"""Examples that the measured constants count as when they are fitted to a label set's own examples."""
_GRID: Final = np.geomspace(0.015, 0.15, 24)
_SPREAD: Final = 0.5
"""Standard deviation of the temperature's logarithm between label sets."""


def label_texts(name: str, description: str | None) -> list[str]:
    """The texts embedded for a label itself."""
    readable = name.replace("_", " ").replace("-", " ").strip() or name
    if description is None:
        return [readable, f"This text is about {readable}."]
    return [description, f"{readable}: {description}"]


@dataclass(frozen=True, slots=True)
class LabelSet:
    """The vectors of a set of labels, as cached between batches.

    Attributes:
        prototypes: a row of length 1 for each label.
        temperature: of the softmax.
        midpoint: excess similarity at which a label fits with probability 0.5, with `multi`.
    """

    prototypes: Floats = field(repr=False)
    temperature: float
    midpoint: float

    @classmethod
    def of(
        cls,
        described: Sequence[tuple[Floats, float]],
        examples: Sequence[Floats],
        options: Mapping[str, Any],
    ) -> LabelSet:
        """Make prototypes, and fit temperature and midpoint to the examples.

        Args:
            described: of each label, the vectors of `label_texts` and their total weight.
            examples: of each label, the vectors of its examples; may have no rows.
            options: of the model's catalogue entry.
        """
        sums = np.stack(
            [
                weight * unit(texts.mean(axis=0)) + more.sum(axis=0)
                for (texts, weight), more in zip(described, examples, strict=True)
            ]
        )
        temperature = float(options.get("temperature", TEMPERATURE))
        midpoint = float(options.get("midpoint", MIDPOINT))
        similar, own = _leave_one_out(sums, examples)
        if len(own) and len(sums) > 1:
            temperature = _fitted_temperature(similar, own, temperature)
            midpoint = _fitted_midpoint(similar, own, midpoint)
        return cls(unit(sums), temperature, midpoint)

    def scores(self, names: Sequence[str], vector: Floats, *, multi: bool) -> list[LabelScore]:
        """The probability of each label, the most likely first.

        Args:
            names: of the labels, in order.
            vector: the text's, of length 1.
            multi: independent probabilities; otherwise they add up to 1.
        """
        similar = self.prototypes @ vector
        if multi:
            chances = 1 / (1 + np.exp(-(_excess(similar[None])[0] - self.midpoint) / _SLOPE))
        else:
            chances = _softmax(similar[None], self.temperature)[0]
        scores = [LabelScore(name, float(p)) for name, p in zip(names, chances, strict=True)]
        return sorted(scores, key=lambda one: one.score, reverse=True)


def unit(vectors: Floats) -> Floats:
    """The same directions with length 1; a zero vector stays zero."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    scaled: Floats = vectors / np.where(lengths > 0, lengths, 1)
    return scaled


def _leave_one_out(sums: Floats, examples: Sequence[Floats]) -> tuple[Floats, NDArray[np.int64]]:
    """Similarities of each example to prototypes made without it, and the index of its label."""
    prototypes = unit(sums)
    rows: list[Floats] = []
    own: list[int] = []
    for label, vectors in enumerate(examples):
        for vector in vectors:
            similar = prototypes @ vector
            similar[label] = unit(sums[label] - vector) @ vector
            rows.append(similar)
            own.append(label)
    return np.array(rows), np.array(own, dtype=np.int64)


def _fitted_temperature(similar: Floats, own: NDArray[np.int64], prior: float) -> float:
    """The temperature of greatest posterior probability, given the examples and `prior`."""
    costs = [
        -np.log(_softmax(similar, t)[np.arange(len(own)), own] + 1e-12).sum()
        + _PRIOR * (np.log(t / prior) / _SPREAD) ** 2 / 2
        for t in _GRID
    ]
    return float(_GRID[int(np.argmin(costs))])


def _fitted_midpoint(similar: Floats, own: NDArray[np.int64], prior: float) -> float:
    """Half way between the examples' excess similarity to their own label and to the others."""
    excess = _excess(similar)
    is_own = np.zeros(excess.shape, dtype=bool)
    is_own[np.arange(len(own)), own] = True
    between = (excess[is_own].mean() + excess[~is_own].mean()) / 2
    return float((_PRIOR * prior + len(own) * between) / (_PRIOR + len(own)))


def _excess(similar: Floats) -> Floats:
    """Similarities less a share of the other labels': a text of one field resembles all its labels."""
    labels = similar.shape[1]
    others = UNRELATED if labels == 1 else (similar.sum(1, keepdims=True) - similar) / (labels - 1)
    return similar - _OTHERS * others


def _softmax(similar: Floats, temperature: float) -> Floats:
    scaled = similar / temperature
    raised = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    shares: Floats = raised / raised.sum(axis=1, keepdims=True)
    return shares
