"""A private directory for temporary files, removed when its process ends.

The directory of a killed process remains; the next `TempDir` of that parent and name removes it.
Directories in use are locked: the kernel releases a lock with the process that holds it.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

MIN_FREE_BYTES: Final = 512 * 1024 * 1024
"""Bytes that must be free in memory for temporary files to be kept there."""
ATTEMPTS: Final = 5
"""Another process that closes may remove the parent while this one starts."""


class TempDirError(Exception):
    """There is no private directory for temporary files."""


class TempDir:
    """One process's directory `path` below `parent`, 0700 and empty at first, as a context manager.

    Args:
        parent: created 0700 if missing. Other processes of this account may use it too.
        name: of the directory, with a number appended while other processes hold that name. Entries
            `name` and `name.<number>` of `parent` that no process holds are removed.

    Raises:
        TempDirError: `parent` belongs to another account, others may write to it, or it cannot be
            used.
    """

    def __init__(self, parent: Path, name: str) -> None:
        self._parent = parent
        self._name = re.sub(r"[^A-Za-z0-9_-]+", "-", name)[:80] or "vestry"
        try:
            self.path, lock = self._acquire()
        except OSError:
            raise TempDirError(
                f"{parent} cannot be used for temporary files; set VESTRY_TEMP_DIR to another directory"
            ) from None
        self._lock: int | None = lock

    def new_directory(self) -> Path:
        """Create an empty directory of a random name in it."""
        directory = self.path / secrets.token_hex(8)
        directory.mkdir(mode=0o700)
        return directory

    @contextlib.contextmanager
    def file(self, content: bytes) -> Iterator[Path]:
        """A 0600 file of a random name and this content, removed at the end of the block."""
        path = self.path / secrets.token_hex(8)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(content)
            yield path
        finally:
            path.unlink(missing_ok=True)

    def use_for_process(self) -> None:
        """Make it the directory of `tempfile`, and of child processes through TMPDIR."""
        os.environ["TMPDIR"] = tempfile.tempdir = str(self.path)

    def close(self) -> None:
        """Remove it with its content. Safe to repeat."""
        if self._lock is None:
            return
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)
        self._lock = None
        with contextlib.suppress(OSError):  # other processes use it
            self._parent.rmdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _acquire(self) -> tuple[Path, int]:
        """Create and lock a directory; the first name that no other process holds."""
        for _ in range(ATTEMPTS - 1):
            with contextlib.suppress(FileNotFoundError):
                return self._try_acquire()
        return self._try_acquire()

    def _try_acquire(self) -> tuple[Path, int]:
        self._parent.parent.mkdir(parents=True, exist_ok=True)
        _make_private(self._parent)
        own = re.compile(rf"{re.escape(self._name)}(\.[0-9]+)?")
        for path in self._parent.iterdir():
            if own.fullmatch(path.name):
                _sweep(path)
        for number in itertools.count():
            path = self._parent / (f"{self._name}.{number}" if number else self._name)
            _make_private(path)
            lock = _lock(path)
            if lock is not None:
                return path, lock
        raise AssertionError


def default_parent() -> Path:
    """Default parent of temporary directories: TMPDIR, else memory with enough space, else /tmp."""
    memory = Path("/dev/shm")  # noqa: S108 - a private directory in it
    root = Path(tempfile.gettempdir())
    if "TMPDIR" not in os.environ and os.access(memory, os.W_OK):
        free = os.statvfs(memory)
        if free.f_bavail * free.f_frsize >= MIN_FREE_BYTES:
            root = memory
    return root / f"vestry-{os.geteuid()}"


def _make_private(path: Path) -> None:
    """Create a directory 0700, or check one that exists; its mode remains."""
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise TempDirError(f"{path} is not a directory of this account; set VESTRY_TEMP_DIR to one")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise TempDirError(f"{path} is writable by other accounts; set its mode to 0700")


def _sweep(path: Path) -> None:
    """Remove a directory that no process holds, or a stray file."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    elif (lock := _lock(path)) is not None:
        try:
            shutil.rmtree(path)
        finally:
            os.close(lock)


def _lock(path: Path) -> int | None:
    """Open and lock a directory; None if another process holds or has just removed it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_ino == path.stat().st_ino:
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(descriptor)
    return None
