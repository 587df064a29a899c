"""Number of compute threads of a process (VESTRY_THREADS) and its default."""

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
    """Physical cores that this process may use: hyper-threads add nothing to matrix products.

    Bounded by the CPU affinity and, in a container, by its CPU quota (cgroup v2 `cpu.max`). Workers
    of one machine share the cores by priority: a busy lane uses the cores of an idle one.
    """
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = min(cores, len(os.sched_getaffinity(0)))
    with suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = _QUOTA.read_text(encoding="ascii").split()
        cores = min(cores, int(quota) // int(period))
    return max(1, cores)


def set_threads(threads: int | None = None) -> int:
    """Limit the numerical libraries of this process to a number of threads.

    Call it before they are imported; torch is limited also afterwards.

    Args:
        threads: VESTRY_THREADS; None for `default_threads()`.

    Returns:
        The number that is set.
    """
    count = threads or default_threads()
    for variable in _VARIABLES:
        os.environ[variable] = str(count)
    # Set explicitly, since tokenizers otherwise warn in every process that forks.
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if count > 1 else "false"
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(count)
        with suppress(RuntimeError):  # allowed only before the first parallel work
            torch.set_num_interop_threads(1)
    return count
