"""A private directory for temporary files that outlives no process by long.

A process that is killed leaves its directory behind; the next one that starts on the same root
removes it. A lock tells the living from the dead: the kernel lets go of it with its process.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_LOCK: Final = ".lock"


class Scratch:
    """One process's directory below `root`, 0700; names in it say nothing.

    Args:
        root: made where it is not there; may be shared with other processes of this account.
            Whatever lies in it that no living process holds is removed at once.

    Raises:
        OSError: it cannot be made, or somebody else may write to it.
    """

    def __init__(self, root: Path) -> None:
        while True:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = root.lstat()
            if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise PermissionError
            _sweep(root)
            name = secrets.token_hex(8)
            lock = _locked(root / f"{name}{_LOCK}", os.O_CREAT | os.O_EXCL)
            if lock is not None:
                break  # else another process swept it away between its making and its locking
        self._lock: int | None = lock
        self._lock_file = root / f"{name}{_LOCK}"
        self.directory = root / name
        self.directory.mkdir(mode=0o700)

    def new_directory(self) -> Path:
        """An empty directory in it."""
        made = self.directory / secrets.token_hex(8)
        made.mkdir(mode=0o700)
        return made

    @contextlib.contextmanager
    def file(self, content: bytes) -> Iterator[Path]:
        """A 0600 file of this content, gone at the end."""
        path = self.directory / secrets.token_hex(8)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(content)
            yield path
        finally:
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Remove all of it. Safe to repeat."""
        if self._lock is not None:
            shutil.rmtree(self.directory, ignore_errors=True)
            self._lock_file.unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None
            with contextlib.suppress(OSError):  # others are in it
                self._lock_file.parent.rmdir()


def _sweep(root: Path) -> None:
    """Remove what no living process holds."""
    for path in list(root.iterdir()):
        if path.name.endswith(_LOCK):
            lock = _locked(path)
            if lock is not None:
                _remove(path.with_name(path.name.removesuffix(_LOCK)))
                path.unlink(missing_ok=True)
                os.close(lock)
        elif not path.with_name(f"{path.name}{_LOCK}").exists():
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _locked(path: Path, flags: int = 0) -> int | None:
    """Open a lock file and take its lock; None where a living process has it, or removed it."""
    try:
        descriptor = os.open(path, os.O_RDWR | flags, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.stat().st_ino == os.fstat(descriptor).st_ino:
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None
