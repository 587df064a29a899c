"""Waiting for a condition, in place of a fixed time."""

from __future__ import annotations

import time
from collections.abc import Callable

BULK_S = 240.0
"""Timeout for bulk jobs, whose workers have the lowest priority beside other tests."""


def eventually(check: Callable[[], object], within: float = 60.0) -> None:
    """Poll a check until it is true; AssertionError after `within` seconds."""
    deadline = time.monotonic() + within
    while not check():
        assert time.monotonic() < deadline, f"not true within {within:.0f} s"
        time.sleep(0.02)
