"""Classification by similarity: which label's prototype is nearest to the text's vector.

A label's prototype is the direction of its description and its examples, the description counting as
three of them. Descriptions alone do for topics; for what a description hardly tells, such as style,
a dozen examples help. What similarities are worth as probabilities is learnt from the examples: each
is compared with prototypes made without it. Where there are few or none, it is what was measured with
all-MiniLM-L6-v2 (`docs/classification.md`); another model's catalogue entry may say otherwise in its
options `temperature` and `midpoint`.
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
"""Examples that a description counts as; measured flat between 2 and 5."""
NAME_WEIGHT: Final = 1.0
"""The same for a label that has a name alone."""

TEMPERATURE: Final = 0.04
"""Of the softmax over a text's similarities."""
MIDPOINT: Final = 0.135
"""Excess similarity at which a label of several is as likely to fit as not."""
ELSEWHERE: Final = 0.045
"""Similarity of a text to a label that has nothing to do with it."""

_SLOPE: Final = 0.025
_OTHERS: Final = 0.6
"""How much of a text's similarity to the other labels counts as common to all it could be about."""
_PRIOR: Final = 10
"""Examples that the measured constants count as, where a set of labels has examples of its own."""
_GRID: Final = np.geomspace(0.015, 0.15, 24)
_SPREAD: Final = 0.5
"""Standard deviation of the temperature's logarithm from one set of labels to another."""


def label_texts(name: str, description: str | None) -> list[str]:
    """What is embedded for a label itself."""
    readable = name.replace("_", " ").replace("-", " ").strip() or name
    if description is None:
        return [readable, f"This text is about {readable}."]
    return [description, f"{readable}: {description}"]


@dataclass(frozen=True, slots=True)
class LabelSet:
    """Labels as vectors: all that is kept of them between batches.

    Attributes:
        prototypes: a row of length 1 for each label.
        temperature: of the softmax.
        midpoint: excess similarity at which a label of several is as likely to fit as not.
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
        """Make prototypes, and learn from the examples what similarities are worth.

        Args:
            described: of each label, the vectors of `label_texts` and what they weigh together.
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
        left_out, own = _left_out(sums, examples)
        if len(own) and len(sums) > 1:
            temperature = _fitted_temperature(left_out, own, temperature)
            midpoint = _fitted_midpoint(left_out, own, midpoint)
        return cls(unit(sums), temperature, midpoint)

    def scores(self, names: Sequence[str], vector: Floats, *, multi: bool) -> list[LabelScore]:
        """How likely each label is, the most likely first.

        Args:
            names: of the labels, in order.
            vector: the text's, of length 1.
            multi: each by itself, else shares of one whole.
        """
        similar = self.prototypes @ vector
        if multi:
            chances = 1 / (1 + np.exp(-(_excess(similar[None])[0] - self.midpoint) / _SLOPE))
        else:
            chances = _softmax(similar[None], self.temperature)[0]
        scores = [LabelScore(name, float(p)) for name, p in zip(names, chances, strict=True)]
        return sorted(scores, key=lambda one: one.score, reverse=True)


def unit(vectors: Floats) -> Floats:
    """The same directions with length 1; what has none stays zero."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    scaled: Floats = vectors / np.where(lengths > 0, lengths, 1)
    return scaled


def _left_out(sums: Floats, examples: Sequence[Floats]) -> tuple[Floats, NDArray[np.int64]]:
    """Similarities of each example to prototypes made without it, and which label it is of."""
    prototypes = unit(sums)
    rows: list[Floats] = []
    own: list[int] = []
    for place, vectors in enumerate(examples):
        for vector in vectors:
            similar = prototypes @ vector
            similar[place] = unit(sums[place] - vector) @ vector
            rows.append(similar)
            own.append(place)
    return np.array(rows), np.array(own, dtype=np.int64)


def _fitted_temperature(similar: Floats, own: NDArray[np.int64], usual: float) -> float:
    """The temperature under which the examples are likeliest, near the usual one if they are few."""
    costs = [
        -np.log(_softmax(similar, t)[np.arange(len(own)), own] + 1e-12).sum()
        + _PRIOR * (np.log(t / usual) / _SPREAD) ** 2 / 2
        for t in _GRID
    ]
    return float(_GRID[int(np.argmin(costs))])


def _fitted_midpoint(similar: Floats, own: NDArray[np.int64], usual: float) -> float:
    """Half way between the examples' excess similarity to their own label and to the others."""
    excess = _excess(similar)
    mine = np.zeros(excess.shape, dtype=bool)
    mine[np.arange(len(own)), own] = True
    between = (excess[mine].mean() + excess[~mine].mean()) / 2
    return float((_PRIOR * usual + len(own) * between) / (_PRIOR + len(own)))


def _excess(similar: Floats) -> Floats:
    """Similarities less a part of what the others have: texts of one field resemble all its labels."""
    labels = similar.shape[1]
    others = ELSEWHERE if labels == 1 else (similar.sum(1, keepdims=True) - similar) / (labels - 1)
    return similar - _OTHERS * others


def _softmax(similar: Floats, temperature: float) -> Floats:
    scaled = similar / temperature
    raised = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    shares: Floats = raised / raised.sum(axis=1, keepdims=True)
    return shares
