"""A worker's private directory for temporary files, empty at every start.

Its name is the worker's, not a random one: what a worker that was killed left in it is gone when the
next one starts. While a worker runs, its directory is locked, so that a second one of the same name
takes another.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import re
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Final, Self

ROOM: Final = 512 * 1024 * 1024
"""Bytes that must be free in memory for temporary files to be kept there."""


class ScratchError(RuntimeError):
    """There is no private place for temporary files."""


class Scratch:
    """One worker's directory, as a context manager.

    Args:
        name: the worker's.
        parent: where it is made; by default where TMPDIR says, else in memory where there is room.
    """

    def __init__(self, name: str, parent: Path | None = None) -> None:
        self._name = re.sub(r"[^A-Za-z0-9_-]+", "-", name)[:80] or "worker"
        self._parent = parent or _place() / f"vestry-{os.geteuid()}"
        self._held: int | None = None
        self.path = self._parent / self._name
        """Mode 0700; there from `open` to `close`."""

    def open(self) -> Self:
        """Make it, empty, and have the whole process use it for temporary files.

        What workers of its name left that are gone goes as well.

        Raises:
            ScratchError: the place is somebody else's, or open to others, or cannot be emptied.
        """
        try:
            _make_private(self._parent)
            for path in self._parent.glob(f"{self._name}*"):
                _sweep(path)
            for number in itertools.count():
                self.path = self._parent / (f"{self._name}.{number}" if number else self._name)
                _make_private(self.path)
                self._held = _hold(self.path)
                if self._held is not None:
                    break
        except OSError:
            raise ScratchError(f"{self._parent} cannot be used for temporary files") from None
        os.environ["TMPDIR"] = tempfile.tempdir = str(self.path)
        return self

    def close(self) -> None:
        """Remove it with all that is in it. Safe to repeat."""
        if self._held is None:
            return
        with contextlib.suppress(OSError):
            shutil.rmtree(self.path)
        os.close(self._held)
        self._held = None
        with contextlib.suppress(OSError):
            self._parent.rmdir()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, *_: object) -> None:
        self.close()


def _place() -> Path:
    memory = Path("/dev/shm")  # noqa: S108 - a private directory in it
    if "TMPDIR" not in os.environ and os.access(memory, os.W_OK):
        free = os.statvfs(memory)
        if free.f_bavail * free.f_frsize >= ROOM:
            return memory
    return Path(tempfile.gettempdir())


def _make_private(path: Path) -> None:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise ScratchError(f"{path} is not this account's own directory")
    path.chmod(0o700)


def _hold(path: Path) -> int | None:
    """Lock a directory for as long as it is open; None where somebody holds it, or just removed it."""
    held = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(held).st_ino == path.stat().st_ino:
            return held
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(held)
    return None


def _sweep(path: Path) -> None:
    """Remove a directory that nobody holds."""
    if path.is_symlink() or not path.is_dir():
        path.unlink()
    elif (held := _hold(path)) is not None:
        try:
            shutil.rmtree(path)
        finally:
            os.close(held)
