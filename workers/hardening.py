"""What a process must not leave behind of its memory: no core dump, no look into it by others."""

from __future__ import annotations

import ctypes
import resource
import sys
from typing import Final

PR_SET_DUMPABLE: Final = 4
"""prctl(2): without it the kernel writes no core, and /proc/PID/mem and environ are root's alone."""


def no_dumps() -> None:
    """Have this process, and what it starts, write no core dump; on Linux, let nobody attach to it.

    Children that run another program may be attached to again, by their own account.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
