"""How long a failed attempt waits before the next."""

from __future__ import annotations

import random


def delay_s(attempt: int, cap_s: float, retry_after: float | None = None) -> float:
    """Exponential backoff with full jitter: uniform in 0 … min(cap, 2**attempt) seconds.

    Full jitter spreads a crowd of retries best (AWS Architecture Blog, "Exponential Backoff And
    Jitter", 2015). What the backend asked for is never undercut.

    Args:
        attempt: which attempt just failed, from 1.
        cap_s: longest wait.
        retry_after: seconds the backend asked for.
    """
    ceiling = min(cap_s, 2.0 ** min(attempt, 30))
    jittered = random.uniform(0, ceiling)  # noqa: S311 - spreading load, not guarding a secret
    return jittered if retry_after is None else max(retry_after, jittered)
