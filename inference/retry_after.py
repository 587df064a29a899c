"""How long a server asked us to wait, from its response headers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime

LONGEST_S = 86_400.0
"""A day: a server that asks for more is asked again after it."""


def retry_after(headers: Mapping[str, str], clock: Callable[[], float] = time.time) -> float | None:
    """Seconds to wait, as a server said in one of its ways; None where it said nothing usable.

    Args:
        headers: of the response, by lower-case name.
        clock: seconds since 1970, for a date without a `Date` of the server's own beside it.

    Returns:
        0 to `LONGEST_S`. A date in the past is 0.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return _bounded(milliseconds / 1000)
    told = headers.get("retry-after")
    seconds = _number(told)
    if seconds is not None:
        return _bounded(seconds)
    until = _date(told)
    if until is None:
        return None
    # Both by the server's clock, where it tells it: ours may be wrong.
    now = _date(headers.get("date"))
    return _bounded(until - (clock() if now is None else now))


def _bounded(seconds: float) -> float:
    return min(max(seconds, 0.0), LONGEST_S)


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _date(text: str | None) -> float | None:
    if not text:
        return None
    try:
        return parsedate_to_datetime(text).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None
