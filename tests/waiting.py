"""Waiting for a condition: tests wait for what must come about, never for a time."""

from __future__ import annotations

import time
from collections.abc import Callable

BULK_S = 240.0
"""Timeout for jobs in bulk, whose workers have the lowest priority beside whatever else is tested."""


def eventually(check: Callable[[], object], within: float = 60.0) -> None:
    """Wait until a check is true; an AssertionError after `within` seconds."""
    until = time.monotonic() + within
    while not check():
        assert time.monotonic() < until, f"not true within {within:.0f} s"
        time.sleep(0.02)
