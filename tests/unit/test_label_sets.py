"""Prototypes: what similarities are worth, and how long a set of labels is kept."""

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


def at(*places: int) -> Any:
    """A direction: the mean of some axes of eight."""
    vector = np.zeros(8)
    vector[list(places)] = 1
    return unit(vector)


def labels(*examples: Any, **options: Any) -> LabelSet:
    described = [(np.array([at(place)]), DESCRIPTION_WEIGHT) for place in range(3)]
    return LabelSet.of(described, examples or [NONE] * 3, options)


def test_what_is_embedded_for_a_label_reads_like_words() -> None:
    assert label_texts("prayer_requests", None) == [
        "prayer requests", "This text is about prayer requests."
    ]  # fmt: skip
    assert label_texts("law", "commandments") == ["commandments", "law: commandments"]
    assert label_texts("_", None)[0] == "_"


def test_single_scores_share_out_one_whole_and_multi_scores_stand_alone() -> None:
    made = labels()
    single = made.scores(NAMES, at(0, 1), multi=False)
    assert sum(one.score for one in single) == pytest.approx(1)
    assert single[0].score == pytest.approx(single[1].score, abs=1e-9)
    assert single[2].label == "c"
    multi = made.scores(NAMES, at(0, 1), multi=True)
    assert [one.score > 0.5 for one in multi] == [True, True, False]
    assert all(one.score < 0.5 for one in made.scores(NAMES, at(7), multi=True))
    assert all(0 <= one.score <= 1 for one in [*single, *multi])


def test_without_examples_the_measured_constants_hold_or_the_models_own() -> None:
    assert (labels().temperature, labels().midpoint) == (TEMPERATURE, MIDPOINT)
    told = labels(temperature=0.1, midpoint=0.4)
    assert (told.temperature, told.midpoint) == (0.1, 0.4)


def test_examples_that_are_hard_to_tell_apart_make_scores_less_sure() -> None:
    rng = np.random.default_rng(0)

    def around(place: int, noise: float) -> Any:
        return unit(at(place) + noise * rng.normal(size=(12, 8)))

    clear = labels(*(around(place, 0.1) for place in range(3)))
    blurred = labels(*(around(place, 1.5) for place in range(3)))
    assert clear.temperature == pytest.approx(TEMPERATURE, rel=0.1)
    assert blurred.temperature > 2 * TEMPERATURE
    # Few examples hardly move what was measured on many.
    few = labels(around(0, 1.5)[:1], NONE, NONE)
    assert few.temperature == pytest.approx(TEMPERATURE, rel=0.35)


def test_an_example_moves_its_label_and_a_description_weighs_three() -> None:
    made = labels(np.array([at(5)]), NONE, NONE)
    assert made.prototypes[0] == pytest.approx(unit(3 * at(0) + at(5)))
    assert made.prototypes[1] == pytest.approx(at(1))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_sets_are_bounded_by_their_prototypes_the_longest_unused_goes() -> None:
    sets = LabelSetCache(most=7)
    for name in (b"1", b"2"):
        sets.put(name, labels())
    assert sets.get(b"1") is not None
    sets.put(b"3", labels())
    assert (sets.get(b"2"), len(sets)) == (None, 2)
    assert sets.get(b"1") is not None
    # One that is too large by itself is not kept at all.
    LabelSetCache(most=2).put(b"large", labels())


def test_a_set_that_nobody_asks_for_is_dropped() -> None:
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
