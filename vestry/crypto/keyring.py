"""The key ring: key-encryption keys, which wrap every owner's data key, and the sources they come from.

Without it no private content can be read: back it up, apart from the database's backups.

A key ring comes from a private file, a command's output, or an inherited descriptor. All three hold the
same JSON, `{"current": id, "keys": {id: base64 of 32 bytes}}`. A command is for a key management
service that unwraps the ring. A supervisor passes the ring to a child by descriptor, so that it is in
no argument, environment variable or file that the child could name.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import stat
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from vestry.crypto import keyring_file
from vestry.crypto.envelope import KEY_BYTES, NONCE_BYTES, OwnerKey, associated_data
from vestry.crypto.keyring_file import KeyFile, RingText, parse
from vestry.errors import KeyRingError, SealBroken, UnknownKey

FILE: Final = "VESTRY_KEYRING_FILE"
COMMAND: Final = "VESTRY_KEYRING_COMMAND"
DESCRIPTOR: Final = "VESTRY_KEYRING_FD"
COMMAND_TIMEOUT_S: Final = 30.0
"""Longest run of a command that prints the key ring."""
DESCRIPTOR_READ_TIMEOUT_S: Final = 2.0
"""Longest wait of a child for a key that its supervisor is about to write."""
RELOAD_INTERVAL_S: Final = 5.0
"""Shortest time between two readings of a source that lacks a key."""
_FIELD: Final = "data key"


class KeySource(Protocol):
    """A source of the key ring."""

    def read(self) -> RingText:
        """The current ring.

        Raises:
            KeyRingError: the source cannot be read, is malformed, or is readable by other users.
        """
        ...

    def changed(self) -> bool:
        """Whether the ring may have changed since it was read; cheap, False if undetectable."""
        ...

    def read_with(self, kek_id: str) -> RingText:
        """The ring with this key; without it if the source does not have it in time."""
        ...


class KeyRing:
    """Key-encryption keys by id, one of them current: it wraps, the others only unwrap.

    A ring with a source reads it again when a key is missing, so that keys are rotated while producers
    and workers run. Threads may share it.
    """

    __slots__ = ("_held", "_lock", "_miss_at", "_source")

    def __init__(
        self, keys: Mapping[str, bytes], current: str, source: KeySource | None = None
    ) -> None:
        """Take the keys, 32 bytes each, and the id of the one that wraps new data keys."""
        self._held = _opened(RingText(keys, current))
        self._source = source
        self._lock = threading.Lock()
        self._miss_at = -RELOAD_INTERVAL_S

    def __repr__(self) -> str:
        return f"KeyRing({len(self._held[0])} keys)"

    def __reduce__(self) -> str:
        raise TypeError("a key ring cannot be pickled or copied")

    @property
    def current(self) -> str:
        """The id of the key that wraps."""
        return self._held[1]

    @property
    def key_ids(self) -> tuple[str, ...]:
        """All keys' ids, oldest first."""
        return tuple(self._held[0])

    @classmethod
    def generate(cls, path: str | os.PathLike[str]) -> KeyRing:
        """Create a key ring with one new key, in a file of mode 0600.

        The file appears complete or not at all.

        Raises:
            KeyRingError: the file exists; a key ring is never overwritten.
        """
        kek_id = new_key_id()
        keyring_file.create(Path(path), RingText({kek_id: os.urandom(KEY_BYTES)}, kek_id))
        return cls.load(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> KeyRing:
        """Read a key ring from its file.

        Raises:
            KeyRingError: the file is missing, malformed, or readable by other users.
        """
        return cls.read(KeyFile(path))

    @classmethod
    def read(cls, source: KeySource) -> KeyRing:
        """Read a key ring from a source, which is read again when a key is missing.

        Raises:
            KeyRingError: as `KeySource.read`.
        """
        ring = source.read()
        return cls(ring.keys, ring.current, source)

    def renew(self) -> None:
        """Read the source again, if there is one.

        Raises:
            KeyRingError: as `KeySource.read`; the ring is unchanged.
        """
        if self._source is not None:
            self._held = _opened(self._source.read())

    def wrap(self, owner: str, key_id: UUID, dek: bytes) -> tuple[bytes, str]:
        """An owner's data key as it is stored, and the id of the key that wrapped it."""
        if self._source is not None and self._source.changed():
            self.renew()
        keys, current = self._held
        nonce = os.urandom(NONCE_BYTES)
        aad = associated_data(key_id, owner, _FIELD)
        return nonce + keys[current].encrypt(nonce, dek, aad), current

    def unwrap(self, owner: str, key_id: UUID, wrapped: bytes, kek_id: str) -> OwnerKey:
        """An owner's key from its stored form.

        Raises:
            UnknownKey: the ring has no key of that id.
            SealBroken: the stored key was changed, or is another owner's.
        """
        return OwnerKey(key_id, owner, self._dek(owner, key_id, wrapped, kek_id))

    def rewrap(self, owner: str, key_id: UUID, wrapped: bytes, kek_id: str) -> tuple[bytes, str]:
        """A stored data key, wrapped with the current key; raises as `unwrap`."""
        return self.wrap(owner, key_id, self._dek(owner, key_id, wrapped, kek_id))

    def _dek(self, owner: str, key_id: UUID, wrapped: bytes, kek_id: str) -> bytes:
        kek = self._held[0].get(kek_id) or self._reloaded(kek_id)
        if kek is None:
            raise UnknownKey(
                "the owner's key is wrapped with a key that this key ring lacks; see `vestry keys list`"
            )
        aad = associated_data(key_id, owner, _FIELD)
        try:
            return kek.decrypt(bytes(wrapped[:NONCE_BYTES]), bytes(wrapped[NONCE_BYTES:]), aad)
        except (InvalidTag, ValueError):
            raise SealBroken(
                "the owner's data key does not unwrap: it was changed, or is another owner's"
            ) from None

    def _reloaded(self, kek_id: str) -> AESGCM | None:
        """A missing key, after reading the source again; one thread at a time, rate-limited."""
        with self._lock:
            key = self._held[0].get(kek_id)
            if key is None and self._source is not None:
                if time.monotonic() - self._miss_at < RELOAD_INTERVAL_S:
                    return None
                self._held = _opened(self._source.read_with(kek_id))
                key = self._held[0].get(kek_id)
                if key is None:
                    self._miss_at = time.monotonic()
            return key


class KeyCommand:
    """A command that prints the ring, run without a shell.

    Args:
        command: words and quotes as in a shell, without expansion.
    """

    def __init__(self, command: str) -> None:
        try:
            self._argv = shlex.split(command)
        except ValueError:
            self._argv = []
        if not self._argv:
            raise KeyRingError(f"{COMMAND} is not a command line: it is empty, or a quote is open")

    def read(self) -> RingText:
        """Run the command; it inherits this process's stderr."""
        try:
            done = subprocess.run(
                self._argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False,
                timeout=COMMAND_TIMEOUT_S,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            # `from None`: the error holds the output so far.
            raise KeyRingError(f"{COMMAND} took longer than {COMMAND_TIMEOUT_S:.0f} s") from None
        except OSError:
            raise KeyRingError(f"{COMMAND} cannot be run: check the path of its program") from None
        if done.returncode != 0:
            raise KeyRingError(f"{COMMAND} ended with exit code {done.returncode}; see its stderr")
        return parse(done.stdout, f"{COMMAND} printed no key ring")

    def changed(self) -> bool:
        """False: only running the command would show it."""
        return False

    def read_with(self, kek_id: str) -> RingText:
        """Run the command again."""
        del kek_id
        return self.read()


class KeyDescriptor:
    """A descriptor that the parent process opened.

    A file may grow: each further line is a newer ring, and the last complete line counts. A pipe gives
    one ring. Children of this process do not inherit the descriptor.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._size = -1
        self._from_pipe: RingText | None = None
        try:
            os.set_inheritable(descriptor, False)
            self._is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        except (OSError, OverflowError):
            raise KeyRingError(f"{DESCRIPTOR} is not an inherited, open descriptor") from None

    def read(self) -> RingText:
        """The latest ring."""
        if self._from_pipe is not None:
            return self._from_pipe
        try:
            text = self._content()
        except OSError:
            raise KeyRingError(f"the descriptor in {DESCRIPTOR} cannot be read") from None
        if not self._is_file:
            self._from_pipe = parse(text, keyring_file.MALFORMED)
            return self._from_pipe
        complete = text[: text.rfind(b"\n") + 1].splitlines()
        try:
            return parse(text, keyring_file.MALFORMED)
        except KeyRingError:
            return parse(complete[-1] if complete else b"", keyring_file.MALFORMED)

    def changed(self) -> bool:
        """Whether the file grew since it was read."""
        with contextlib.suppress(OSError):
            return self._is_file and os.fstat(self._descriptor).st_size != self._size
        return False

    def read_with(self, kek_id: str) -> RingText:
        """The ring once the parent has written this key; without it after a timeout."""
        deadline = time.monotonic() + DESCRIPTOR_READ_TIMEOUT_S
        while True:
            ring = self.read()
            if kek_id in ring.keys or not self._is_file or time.monotonic() > deadline:
                return ring
            time.sleep(0.05)

    def _content(self) -> bytes:
        if not self._is_file:
            with os.fdopen(os.dup(self._descriptor), "rb") as pipe:
                return pipe.read()
        # pread from the start: other processes share the file position.
        self._size = os.fstat(self._descriptor).st_size
        return os.pread(self._descriptor, self._size, 0)


def key_source_from_environment(environment: Mapping[str, str] = os.environ) -> KeySource | None:
    """The source that the environment names; None if it names none.

    Raises:
        KeyRingError: it names several, or an invalid one.
    """
    names = [name for name in (FILE, COMMAND, DESCRIPTOR) if environment.get(name)]
    if len(names) > 1:
        raise KeyRingError(f"{' and '.join(names)} are both set; set one")
    if not names:
        return None
    value = environment[names[0]]
    if names[0] == FILE:
        return KeyFile(value)
    if names[0] == COMMAND:
        return KeyCommand(value)
    if not value.isdecimal():
        raise KeyRingError(f"{DESCRIPTOR} must be the number of a descriptor")
    return KeyDescriptor(int(value))


def new_key_id() -> str:
    """An id for a new key-encryption key."""
    return f"kek-{secrets.token_hex(8)}"


def _opened(ring: RingText) -> tuple[Mapping[str, AESGCM], str]:
    """Keys and the id of the current one, as one value that threads read and replace atomically."""
    if ring.current not in ring.keys:
        raise KeyRingError("the key ring lacks its current key; restore it from its backup")
    if any(len(key) != KEY_BYTES for key in ring.keys.values()):
        raise KeyRingError("a key of the key ring is not 32 bytes long; restore it from its backup")
    return {kek_id: AESGCM(key) for kek_id, key in ring.keys.items()}, ring.current
