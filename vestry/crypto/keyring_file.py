"""The key ring's file, changed so that it is whole at every moment and two cannot change it at once."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from vestry.crypto.keyring_source import KeyFile, RingText, dump
from vestry.errors import KeyRingError


def create(path: Path, ring: RingText) -> None:
    """Write a ring where there is none.

    Raises:
        KeyRingError: something is there already; a key ring is never overwritten.
    """
    with _draft(path, ring) as draft:
        try:
            # A link, unlike a rename, fails where the target exists.
            os.link(draft, path)
        except FileExistsError:
            raise KeyRingError("there is a key ring already; it is not overwritten") from None
    _settle(path.parent)


@contextlib.contextmanager
def changing(path: Path) -> Iterator[RingChange]:
    """The ring in a file, for one who changes it; nobody else does meanwhile.

    Raises:
        KeyRingError: it cannot be read or written.
    """
    import fcntl  # noqa: PLC0415 - not on every system where a producer runs

    try:
        # The directory, since the file itself is replaced.
        lock = os.open(path.parent, os.O_RDONLY)
    except OSError:
        raise KeyRingError("the key ring file does not exist") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield RingChange(path)
    finally:
        os.close(lock)


class RingChange:
    """A locked ring file; see `changing`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.ring = KeyFile(path).read()

    def replace(self, ring: RingText) -> None:
        """Put a ring in the place of the one there; a reader sees the one or the other."""
        owner = self._path.stat()
        with _draft(self._path, ring) as draft:
            if os.geteuid() == 0:
                os.chown(draft, owner.st_uid, owner.st_gid)
            draft.replace(self._path)
        _settle(self._path.parent)
        self.ring = ring


@contextlib.contextmanager
def _draft(path: Path, ring: RingText) -> Iterator[Path]:
    """The ring in a file of another name, safe on the disk; gone at the end, if not renamed."""
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}.new")
    try:
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError:
        raise KeyRingError("the key ring's directory cannot be written to by this user") from None
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(dump(ring))
            file.flush()
            os.fsync(file.fileno())
        yield draft
    finally:
        with contextlib.suppress(FileNotFoundError):
            draft.unlink()


def _settle(directory: Path) -> None:
    """Have the new entry on the disk: a key must outlive a crash before it wraps anything."""
    if os.name != "posix":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
