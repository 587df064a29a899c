"""Format and file of the key ring. The file is replaced atomically, and changed under a lock."""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from vestry.errors import KeyRingError

MALFORMED: Final = "the key ring is malformed; restore it from its backup"


@dataclass(frozen=True, slots=True)
class RingText:
    """Content of a key ring: keys by id, oldest first, and the id of the one that wraps."""

    keys: Mapping[str, bytes] = field(repr=False)
    current: str


def parse(text: bytes, message: str = MALFORMED) -> RingText:
    """A ring from its JSON.

    Raises:
        KeyRingError: with `message`, if it is not a key ring.
    """
    try:
        raw = json.loads(text)
        keys = {
            str(kek_id): base64.b64decode(key, validate=True) for kek_id, key in raw["keys"].items()
        }
        return RingText(keys, str(raw["current"]))
    except (ValueError, KeyError, TypeError, AttributeError, binascii.Error):
        # `from None`: a parser's error may quote the line, which is a key.
        raise KeyRingError(message) from None


def dump(ring: RingText) -> str:
    """A ring as one line of JSON."""
    keys = {kek_id: base64.b64encode(key).decode() for kek_id, key in ring.keys.items()}
    return json.dumps({"current": ring.current, "keys": keys}) + "\n"


class KeyFile:
    """A key ring file, mode 0600, which may be replaced while it is used."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._seen: tuple[int, int, int] | None = None

    def read(self) -> RingText:
        """The ring in the file."""
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                if stat.S_IMODE(status.st_mode) & 0o077:
                    raise KeyRingError("other users can read the key ring file; make it mode 0600")
                text = file.read()
        except FileNotFoundError:
            raise KeyRingError("the key ring file does not exist; check its path") from None
        except PermissionError:
            raise KeyRingError(
                "the key ring file cannot be read by this user; check its owner"
            ) from None
        except OSError:
            raise KeyRingError("the key ring file cannot be read; check its path") from None
        self._seen = _identity(status)
        return parse(text, "the key ring file holds no key ring; restore it from its backup")

    def changed(self) -> bool:
        """Whether the file was replaced since it was read."""
        with contextlib.suppress(OSError):
            return _identity(self.path.stat()) != self._seen
        return False

    def read_with(self, kek_id: str) -> RingText:
        """Read the file again; the ring may still lack the key."""
        del kek_id
        return self.read()


def create(path: Path, ring: RingText) -> None:
    """Write a ring to a new file.

    Raises:
        KeyRingError: the file exists; a key ring is never overwritten.
    """
    with _temporary(path, ring) as temporary:
        try:
            # A link, unlike a rename, fails where the target exists.
            os.link(temporary, path)
        except FileExistsError:
            raise KeyRingError(
                "the key ring file exists and is not overwritten; use another path"
            ) from None
    _sync_directory(path.parent)


@contextlib.contextmanager
def changing(path: Path) -> Iterator[RingChange]:
    """Lock a ring's file and change it.

    Raises:
        KeyRingError: it cannot be read or written.
    """
    import fcntl  # noqa: PLC0415 - not on every system where a producer runs

    try:
        # The directory, since the file itself is replaced.
        lock = os.open(path.parent, os.O_RDONLY)
    except OSError:
        raise KeyRingError("the key ring file does not exist; check its path") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield RingChange(path)
    finally:
        os.close(lock)


class RingChange:
    """A locked key ring file; see `changing`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.ring = KeyFile(path).read()

    def replace(self, ring: RingText) -> None:
        """Replace the ring atomically: a reader sees the old one or the new one."""
        owner = self._path.stat()
        with _temporary(self._path, ring) as temporary:
            if os.geteuid() == 0:
                os.chown(temporary, owner.st_uid, owner.st_gid)
            temporary.replace(self._path)
        _sync_directory(self._path.parent)
        self.ring = ring


@contextlib.contextmanager
def _temporary(path: Path, ring: RingText) -> Iterator[Path]:
    """A temporary file with the ring, synced to disk; deleted on exit unless it was renamed."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.new")
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError:
        raise KeyRingError(
            "this user cannot write to the key ring's directory; check its owner"
        ) from None
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(dump(ring))
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def _sync_directory(directory: Path) -> None:
    """Sync the directory entry: a key must survive a crash before it wraps anything."""
    if os.name != "posix":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_dev, status.st_ino, status.st_mtime_ns
