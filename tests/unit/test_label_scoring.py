"""Prototypes of labels: scores from similarities, and the cache of label sets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tasks.classification_by_similarity import LabelSetCache
from tasks.label_scoring import (
    DESCRIPTION_WEIGHT,
    MIDPOINT,
    TEMPERATURE,
    LabelSet,
    label_texts,
    unit,
)

NAMES = ("a", "b", "c")
NONE = np.zeros((0, 8))


def at(*axes: int) -> Any:
    """A unit vector: the mean of some of eight axes."""
    vector = np.zeros(8)
    vector[list(axes)] = 1
    return unit(vector)


def labels(*examples: Any, **options: Any) -> LabelSet:
    described = [(np.array([at(axis)]), DESCRIPTION_WEIGHT) for axis in range(3)]
    return LabelSet.of(described, examples or [NONE] * 3, options)


def test_label_texts_are_words() -> None:
    assert label_texts("prayer_requests", None) == [
        "prayer requests", "This text is about prayer requests."
    ]  # fmt: skip
    assert label_texts("law", "commandments") == ["commandments", "law: commandments"]
    assert label_texts("_", None)[0] == "_"


def test_single_scores_add_up_to_one_and_multi_scores_are_independent() -> None:
    label_set = labels()
    single = label_set.scores(NAMES, at(0, 1), multi=False)
    assert sum(one.score for one in single) == pytest.approx(1)
    assert single[0].score == pytest.approx(single[1].score, abs=1e-9)
    assert single[2].label == "c"
    multi = label_set.scores(NAMES, at(0, 1), multi=True)
    assert [one.score > 0.5 for one in multi] == [True, True, False]
    assert all(one.score < 0.5 for one in label_set.scores(NAMES, at(7), multi=True))
    assert all(0 <= one.score <= 1 for one in [*single, *multi])


def test_constants_are_measured_ones_or_the_models_options() -> None:
    assert (labels().temperature, labels().midpoint) == (TEMPERATURE, MIDPOINT)
    own = labels(temperature=0.1, midpoint=0.4)
    assert (own.temperature, own.midpoint) == (0.1, 0.4)


def test_similar_examples_raise_the_temperature() -> None:
    rng = np.random.default_rng(0)

    def around(axis: int, noise: float) -> Any:
        return unit(at(axis) + noise * rng.normal(size=(12, 8)))

    clear = labels(*(around(axis, 0.1) for axis in range(3)))
    blurred = labels(*(around(axis, 1.5) for axis in range(3)))
    assert clear.temperature == pytest.approx(TEMPERATURE, rel=0.1)
    assert blurred.temperature > 2 * TEMPERATURE
    # Few examples hardly change the measured constant.
    few = labels(around(0, 1.5)[:1], NONE, NONE)
    assert few.temperature == pytest.approx(TEMPERATURE, rel=0.35)


def test_description_weighs_three_examples() -> None:
    label_set = labels(np.array([at(5)]), NONE, NONE)
    assert label_set.prototypes[0] == pytest.approx(unit(3 * at(0) + at(5)))
    assert label_set.prototypes[1] == pytest.approx(at(1))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_cache_drops_least_recently_used_set_over_limit() -> None:
    sets = LabelSetCache(most=7)
    for name in (b"1", b"2"):
        sets.put(name, labels())
    assert sets.get(b"1") is not None
    sets.put(b"3", labels())
    assert (sets.get(b"2"), len(sets)) == (None, 2)
    assert sets.get(b"1") is not None
    # A set over the limit by itself is not kept.
    LabelSetCache(most=2).put(b"large", labels())


def test_cache_drops_idle_set() -> None:
    clock = Clock()
    sets = LabelSetCache(idle_s=600, clock=clock)
    sets.put(b"1", labels())
    clock.now = 599
    assert sets.get(b"1") is not None
    clock.now = 1_198
    sets.put(b"2", labels())
    assert len(sets) == 2
    clock.now = 1_300
    assert sets.get(b"2") is not None
    assert len(sets) == 1
    assert sets.get(b"1") is None
