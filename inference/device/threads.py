"""How many threads one process computes with: decided here and nowhere else."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

import psutil

_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "RAYON_NUM_THREADS",
)
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def default_threads() -> int:
    """Physical cores this process may use: hyper-threads add nothing to matrix products.

    Bounded by the CPU affinity and, in a container, by its CPU quota (cgroup v2 `cpu.max`).
    """
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = min(cores, len(os.sched_getaffinity(0)))
    with suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = _QUOTA.read_text(encoding="ascii").split()
        cores = min(cores, int(quota) // int(period))
    return max(1, cores)


def set_threads(threads: int | None = None) -> int:
    """Bind this process's numerical libraries to so many threads.

    Best called before they are imported; torch is bound also afterwards.

    Args:
        threads: VESTRY_THREADS; None for `default_threads()`.

    Returns:
        The number in force.
    """
    count = threads or default_threads()
    for variable in _VARIABLES:
        os.environ[variable] = str(count)
    # Said outright, or the tokenizers warn about it in every process that forks.
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if count > 1 else "false"
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(count)
        with suppress(RuntimeError):  # only before the first parallel work; then it is as it was
            torch.set_num_interop_threads(1)
    return count
