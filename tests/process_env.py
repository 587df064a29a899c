"""Arguments, environments and liveness of other processes."""

from __future__ import annotations

import contextlib
import os
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
            values = (environment(pid) or {}).values()
            lines[pid] = " ".join([*process.cmdline(), *values])
    assert required <= lines.keys()
    return list(lines.values())


def environment(pid: int) -> dict[str, str] | None:
    """Environment of a process; None if the process denies its own account access.

    Private workers and their model servers do, and only root can read theirs.
    """
    try:
        return psutil.Process(pid).environ()
    except psutil.AccessDenied:
        if os.geteuid() == 0:
            raise
        return None


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
