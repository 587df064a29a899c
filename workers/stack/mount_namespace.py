"""Lets a process see directories whose parents forbid it, by a view of the file system of its own.

Root's own Python may lie where no other account may pass, in its home for instance. A process that is
to run as another account then gets a mount namespace in which the forbidden directory holds nothing but
what the process needs: it sees less than before, not more. Linux, and only where root may mount.
"""

from __future__ import annotations

import ctypes
import os
import stat
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

CLONE_NEWNS: Final = 0x00020000
MS_BIND: Final = 4096
MS_REC: Final = 16384
MS_PRIVATE: Final = 1 << 18
"""Of <sched.h> and <sys/mount.h>."""


def forbidden_directories(paths: Iterable[Path]) -> dict[Path, tuple[Path, ...]]:
    """The topmost directories that others may not pass through, with those of the paths below them."""
    found: dict[Path, list[Path]] = {}
    for path in {path.resolve() for path in paths}:
        for parent in reversed(path.parents):
            if not parent.stat().st_mode & stat.S_IXOTH:
                found.setdefault(parent, []).append(path)
                break
    return {parent: tuple(_outermost(below)) for parent, below in found.items()}


def bind_views(views: Mapping[Path, Sequence[Path]]) -> None:
    """Give this process a view in which each directory holds but the paths below it that are named.

    Called as root, between fork and exec.

    Raises:
        OSError: this system, or this root, may not.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if sys.platform != "linux":
        raise OSError("only Linux has mount namespaces")
    _done(libc.unshare(CLONE_NEWNS))
    _done(libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None))
    for directory, paths in views.items():
        held = [(path, os.open(path, os.O_PATH | os.O_CLOEXEC)) for path in paths]
        _done(libc.mount(b"tmpfs", bytes(directory), b"tmpfs", 0, b"mode=0711,size=1m"))
        for path, descriptor in held:
            path.mkdir(mode=0o711, parents=True)
            source = f"/proc/self/fd/{descriptor}".encode()
            _done(libc.mount(source, bytes(path), None, MS_BIND | MS_REC, None))
            os.close(descriptor)


def _outermost(paths: Iterable[Path]) -> list[Path]:
    kept: list[Path] = []
    for path in sorted(paths):
        if not any(path.is_relative_to(other) for other in kept):
            kept.append(path)
    return kept


def _done(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), "the view of the file system cannot be made")
