"""Bisection serves every item once and isolates those that fail."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vestry.bisection import bisect_failures


def failing(bad: set[int], calls: list[int]) -> Callable[[Sequence[int]], list[int]]:
    def call(items: Sequence[int]) -> list[int]:
        calls.append(len(items))
        if bad & set(items):
            raise LookupError(len(items))
        return [-item for item in items]

    return call


@given(st.integers(1, 300), st.sets(st.integers(0, 299)))
def test_each_item_has_its_result_or_its_own_error(count: int, bad: set[int]) -> None:
    served: list[int] = []
    failed: list[int] = []
    for part, result in bisect_failures(range(count), failing(bad, []), (LookupError,)):
        if isinstance(result, LookupError):
            assert len(part) == 1
            failed += part
        else:
            assert result == [-item for item in part]
            served += part
    assert failed == sorted(bad & set(range(count)))
    assert sorted(served + failed) == list(range(count))
    assert served == sorted(served)


def test_one_bad_item_in_256_takes_17_calls() -> None:
    calls: list[int] = []
    list(bisect_failures(range(256), failing({200}, calls), (LookupError,)))
    assert len(calls) == 17


def test_other_exceptions_propagate() -> None:
    with pytest.raises(LookupError):
        list(bisect_failures([1], failing({1}, []), (ValueError,)))
