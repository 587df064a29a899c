"""What processes were told: their arguments and environments."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import psutil


def told_to(pids: Iterable[int], ours: set[int]) -> list[str]:
    """A line each; one of a server's own may end while it is looked at, `ours` must be there."""
    lines = {}
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            lines[pid] = " ".join([*process.cmdline(), *process.environ().values()])
    assert ours <= lines.keys()
    return list(lines.values())
