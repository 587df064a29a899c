"""Mount namespaces: access to paths below directories that an account may not enter.

Root's Python may be in a directory closed to other accounts, such as its home. A process under another
account then gets a mount namespace in which that directory contains only the paths that the process
needs. Linux only, and only if root may mount.
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
"""Constants of <sched.h> and <sys/mount.h>."""


def forbidden_directories(paths: Iterable[Path]) -> dict[Path, tuple[Path, ...]]:
    """Topmost directories that other accounts may not traverse, each with the given paths below it."""
    directories: dict[Path, list[Path]] = {}
    for path in {path.resolve() for path in paths}:
        for parent in reversed(path.parents):
            if not parent.stat().st_mode & stat.S_IXOTH:
                directories.setdefault(parent, []).append(path)
                break
    return {parent: tuple(_outermost(below)) for parent, below in directories.items()}


def bind_views(views: Mapping[Path, Sequence[Path]]) -> None:
    """Enter a mount namespace in which each directory contains only the given paths below it.

    Called as root, between fork and exec.

    Raises:
        OSError: this system has no mount namespaces, or does not permit them.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if sys.platform != "linux":
        raise OSError("only Linux has mount namespaces")
    _check(libc.unshare(CLONE_NEWNS))
    _check(libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None))
    for directory, paths in views.items():
        opened = [(path, os.open(path, os.O_PATH | os.O_CLOEXEC)) for path in paths]
        _check(libc.mount(b"tmpfs", bytes(directory), b"tmpfs", 0, b"mode=0711,size=1m"))
        for path, descriptor in opened:
            path.mkdir(mode=0o711, parents=True)
            source = f"/proc/self/fd/{descriptor}".encode()
            _check(libc.mount(source, bytes(path), None, MS_BIND | MS_REC, None))
            os.close(descriptor)


def _outermost(paths: Iterable[Path]) -> list[Path]:
    kept: list[Path] = []
    for path in sorted(paths):
        if not any(path.is_relative_to(other) for other in kept):
            kept.append(path)
    return kept


def _check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), "the mount namespace cannot be set up")
