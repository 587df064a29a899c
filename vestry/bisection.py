"""Bisection of a failing batch: only the item at fault fails, and its neighbours are served."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")
E = TypeVar("E", bound=Exception)


def bisect_failures(
    items: Sequence[T], call: Callable[[Sequence[T]], R], errors: tuple[type[E], ...]
) -> Iterator[tuple[Sequence[T], R | E]]:
    """Call with all items; if that raises, with each half, down to single items.

    One item at fault among 256 takes 17 calls; one by one it would take 256.

    Args:
        items: at least one, in order.
        call: processes any part of them.
        errors: raised by `call` for items at fault; other exceptions propagate.

    Yields:
        A part of the items, in order, with the result of `call` for it, or with the error for a
        single item.
    """
    try:
        result = call(items)
    except errors as error:
        if len(items) == 1:
            yield items, error
            return
    else:
        yield items, result
        return
    # Outside the handler: inside, the traceback would keep the failed call's data in memory.
    middle = len(items) // 2
    yield from bisect_failures(items[:middle], call, errors)
    yield from bisect_failures(items[middle:], call, errors)
