"""Array parameters, one element a row, for statements that take a whole batch at once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def column(values: Iterable[T | None]) -> list[T | None] | None:
    """An array for a `%b::type[]` placeholder; NULL where it would have only NULLs.

    Binary arrays are written several times faster than text ones (256 UUIDs in 0.08 ms against
    0.41, times in 0.08 against 1.04), but the driver cannot tell the type of one that holds nothing.
    `unnest` of several arrays fills the shorter ones up with NULL, and `= ANY (NULL)` finds nothing,
    so the statements mean the same.
    """
    listed = list(values)
    return listed if any(value is not None for value in listed) else None
