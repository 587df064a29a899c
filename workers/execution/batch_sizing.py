"""How much a batch should hold, from how fast batches were."""

from __future__ import annotations

import threading

SMOOTHING = 0.3
"""Weight of the newest batch in the moving average of cost per second."""
FIRST_BUDGET = 16
"""Cost of the first batch, before anything was measured."""
GROWTH = 2.0
"""One batch may at most double the rate that is believed, before smoothing."""
LARGEST_BUDGET = 4096
"""Cost of a batch however fast it goes: its results are held in memory until they are stored."""
ONE_AT_A_TIME = frozenset({"generation"})
"""Kinds whose batches hold one job: each takes long by itself, and nothing is gained by taking several
up at once. What one slot holds no other can run."""
INTERACTIVE_S = 0.05
"""What a topped-up interactive batch may take, in seconds: nobody waits for another's work."""


class BatchSizer:
    """Cost a batch may have so that it takes about so many seconds.

    Args:
        bulk_s: how long a bulk batch is meant to take.
    """

    def __init__(self, bulk_s: float) -> None:
        self._bulk_s = bulk_s
        self._rates: dict[str, float] = {}
        self._lock = threading.Lock()

    def budget(self, kind: str, latency: str) -> int:
        """Cost budget of the next batch of a kind."""
        if kind in ONE_AT_A_TIME:
            return 1
        rate = self._rates.get(kind)
        if rate is None:
            return 1 if latency == "interactive" else FIRST_BUDGET
        seconds = INTERACTIVE_S if latency == "interactive" else self._bulk_s
        return max(1, min(LARGEST_BUDGET, int(rate * seconds)))

    def observe(self, kind: str, cost: int, took_s: float) -> None:
        """Learn from a batch that took `took_s` seconds.

        `cost` counts only jobs that a model worked on: what was found unchanged or was refused at once
        says nothing about the next batch.
        """
        if cost <= 0:
            return
        rate = cost / max(took_s, 1e-3)
        with self._lock:
            before = self._rates.get(kind)
            if before is not None:
                rate = before + SMOOTHING * (min(rate, GROWTH * before) - before)
            self._rates[kind] = rate
