"""Where a key ring comes from: a private file, a command's output, or an inherited descriptor.

All three give the same JSON, `{"current": id, "keys": {id: base64 of 32 bytes}}`. A command is for a
key management service that unwraps it; a descriptor is how a supervisor hands the ring to a child, so
that it is neither in an argument, nor in the environment, nor in a file that the child could name.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import os
import shlex
import stat
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from vestry.errors import KeyRingError

COMMAND_TIMEOUT_S: Final = 30.0
"""How long a command may take to print the key ring."""
DESCRIPTOR_READ_TIMEOUT_S: Final = 2.0
"""How long a child waits for a key that its supervisor is just about to hand it."""
_MALFORMED: Final = "the key ring is malformed"

FILE: Final = "VESTRY_KEYRING_FILE"
COMMAND: Final = "VESTRY_KEYRING_COMMAND"
DESCRIPTOR: Final = "VESTRY_KEYRING_FD"


@dataclass(frozen=True, slots=True)
class RingText:
    """What a key ring holds: keys by id, oldest first, and the id of the one that wraps."""

    keys: Mapping[str, bytes] = field(repr=False)
    current: str


class KeySource(Protocol):
    """Gives the key ring as it is now."""

    def read(self) -> RingText:
        """The ring.

        Raises:
            KeyRingError: it is not to be had, malformed, or open to others.
        """
        ...

    def changed(self) -> bool:
        """Whether a look would be worth its while; cheap, and False where that cannot be told."""
        ...

    def read_with(self, kek_id: str) -> RingText:
        """The ring, once it has this key, or as it is when that does not come about."""
        ...


class KeyFile:
    """A file, mode 0600. A new one that is put in its place is noticed."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._seen: tuple[int, int, int] | None = None

    def read(self) -> RingText:
        """The ring in the file."""
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                if stat.S_IMODE(status.st_mode) & 0o077:
                    raise KeyRingError("the key ring can be read by others; make it mode 0600")
                text = file.read()
        except FileNotFoundError:
            raise KeyRingError("the key ring file does not exist") from None
        except PermissionError:
            raise KeyRingError("the key ring file cannot be read by this user") from None
        except OSError:
            raise KeyRingError("the key ring file cannot be read") from None
        self._seen = _identity(status)
        return parse(text, "the key ring file is not a key ring")

    def changed(self) -> bool:
        """Whether it is another file than the one read."""
        with contextlib.suppress(OSError):
            return _identity(self.path.stat()) != self._seen
        return False

    def read_with(self, kek_id: str) -> RingText:
        """The ring in the file now."""
        del kek_id
        return self.read()


class KeyCommand:
    """A command that prints the ring, run without a shell.

    Args:
        command: as in a shell: words, quotes, no more.
    """

    def __init__(self, command: str) -> None:
        try:
            self._argv = shlex.split(command)
        except ValueError:
            self._argv = []
        if not self._argv:
            raise KeyRingError(f"{COMMAND} is no command")

    def read(self) -> RingText:
        """Run it. What it says on stderr goes where this process's goes."""
        try:
            done = subprocess.run(
                self._argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False,
                timeout=COMMAND_TIMEOUT_S,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            # `from None`: the error holds what was printed so far.
            raise KeyRingError(f"{COMMAND} took longer than {COMMAND_TIMEOUT_S:.0f} s") from None
        except OSError:
            raise KeyRingError(f"{COMMAND} cannot be run") from None
        if done.returncode != 0:
            raise KeyRingError(f"{COMMAND} ended with exit code {done.returncode}")
        return parse(done.stdout, f"{COMMAND} printed no key ring")

    def changed(self) -> bool:
        """Only running it would tell."""
        return False

    def read_with(self, kek_id: str) -> RingText:
        """Run it again."""
        del kek_id
        return self.read()


class KeyDescriptor:
    """A descriptor that the parent process opened.

    A file may grow while it is held: each further line is a newer ring, and the last whole line counts.
    A pipe gives one ring. Either way the descriptor is not handed on to children of this process.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._size = -1
        self._once: RingText | None = None
        try:
            os.set_inheritable(descriptor, False)
            self._is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        except (OSError, OverflowError):
            raise KeyRingError(f"{DESCRIPTOR} names no open descriptor") from None

    def read(self) -> RingText:
        """The ring last handed over."""
        if self._once is not None:
            return self._once
        try:
            text = self._content()
        except OSError:
            raise KeyRingError(f"the descriptor in {DESCRIPTOR} cannot be read") from None
        if not self._is_file:
            self._once = parse(text, _MALFORMED)
            return self._once
        whole = text[: text.rfind(b"\n") + 1].splitlines()
        try:
            return parse(text, _MALFORMED)
        except KeyRingError:
            return parse(whole[-1] if whole else b"", _MALFORMED)

    def changed(self) -> bool:
        """Whether more was written since it was read."""
        with contextlib.suppress(OSError):
            return self._is_file and os.fstat(self._descriptor).st_size != self._size
        return False

    def read_with(self, kek_id: str) -> RingText:
        """The ring, as soon as the parent has handed over the one with this key."""
        until = time.monotonic() + DESCRIPTOR_READ_TIMEOUT_S
        while True:
            ring = self.read()
            if kek_id in ring.keys or not self._is_file or time.monotonic() > until:
                return ring
            time.sleep(0.05)

    def _content(self) -> bytes:
        if not self._is_file:
            with os.fdopen(os.dup(self._descriptor), "rb") as pipe:
                return pipe.read()
        # From the start whatever others have read: the position is shared with them.
        self._size = os.fstat(self._descriptor).st_size
        return os.pread(self._descriptor, self._size, 0)


def parse(text: bytes, complaint: str = _MALFORMED) -> RingText:
    """The ring in a text.

    Raises:
        KeyRingError: with the complaint; it is none.
    """
    try:
        raw = json.loads(text)
        keys = {
            str(kek_id): base64.b64decode(key, validate=True) for kek_id, key in raw["keys"].items()
        }
        return RingText(keys, str(raw["current"]))
    except (ValueError, KeyError, TypeError, AttributeError, binascii.Error):
        # `from None`: a parser's error may quote the line, which is a key.
        raise KeyRingError(complaint) from None


def dump(ring: RingText) -> str:
    """The ring as one line of JSON."""
    keys = {kek_id: base64.b64encode(key).decode() for kek_id, key in ring.keys.items()}
    return json.dumps({"current": ring.current, "keys": keys}) + "\n"


def from_environment(environment: Mapping[str, str] = os.environ) -> KeySource | None:
    """The source that the environment names, if it names one.

    Raises:
        KeyRingError: it names several, or one that cannot be.
    """
    named = [name for name in (FILE, COMMAND, DESCRIPTOR) if environment.get(name)]
    if len(named) > 1:
        raise KeyRingError(f"{' and '.join(named)} are both set; set one")
    if not named:
        return None
    value = environment[named[0]]
    if named[0] == FILE:
        return KeyFile(value)
    if named[0] == COMMAND:
        return KeyCommand(value)
    if not value.isdecimal():
        raise KeyRingError(f"{DESCRIPTOR} is no descriptor's number")
    return KeyDescriptor(int(value))


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_dev, status.st_ino, status.st_mtime_ns
