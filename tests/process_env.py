"""Arguments, environments and liveness of other processes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import psutil


def arguments_and_environments(pids: Iterable[int], required: set[int]) -> list[str]:
    """One line a process.

    Args:
        pids: of the processes; one that has ended is left out.
        required: those of `pids` that must run.
    """
    lines = {}
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            lines[pid] = " ".join([*process.cmdline(), *process.environ().values()])
    assert required <= lines.keys()
    return list(lines.values())


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
