"""The key ring: key-encryption keys, which wrap every owner's data key.

Losing it makes all private content unreadable: back it up, apart from the database's backups. Where it
comes from is `vestry.key_source`, how its file is changed `vestry.key_file`.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from vestry.crypto import keyring_file
from vestry.crypto.envelope import KEY_BYTES, NONCE_BYTES, OwnerKey, associated_data
from vestry.crypto.keyring_source import KeyFile, KeySource, RingText
from vestry.errors import KeyRingError, SealBroken, UnknownKey

_FIELD = "data key"
RELOAD_CHECK_S: Final = 5.0
"""How soon a source that had not the key looked for is asked again."""


class KeyRing:
    """Key-encryption keys by id, one of them current: it wraps, the others only unwrap.

    A ring that was read from a source follows it: a new key is there when it is first needed, so that
    keys are rotated while everybody goes on working. Threads may share it.
    """

    __slots__ = ("_barren_at", "_held", "_lock", "_source")

    def __init__(
        self, keys: Mapping[str, bytes], current: str, source: KeySource | None = None
    ) -> None:
        """Take the keys, 32 bytes each, and the id of the one that wraps new data keys."""
        self._held = _opened(RingText(keys, current))
        self._source = source
        self._lock = threading.Lock()
        self._barren_at = -RELOAD_CHECK_S

    def __repr__(self) -> str:
        return f"KeyRing({len(self._held[0])} keys)"

    def __reduce__(self) -> str:
        raise TypeError("a key ring is not to be copied out of the process")

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
        """Make a key ring of one new key and write it to `path`, mode 0600.

        The file appears complete or not at all.

        Raises:
            KeyRingError: something is there already; a key ring is never overwritten.
        """
        kek_id = new_key_id()
        keyring_file.create(Path(path), RingText({kek_id: os.urandom(KEY_BYTES)}, kek_id))
        return cls.load(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> KeyRing:
        """Read a key ring from its file.

        Raises:
            KeyRingError: it is absent, malformed, or others than its user may read it.
        """
        return cls.read(KeyFile(path))

    @classmethod
    def read(cls, source: KeySource) -> KeyRing:
        """Read a key ring, and follow its source.

        Raises:
            KeyRingError: as the source says.
        """
        ring = source.read()
        return cls(ring.keys, ring.current, source)

    def renew(self) -> None:
        """Read the source again, where there is one.

        Raises:
            KeyRingError: as the source says; the ring stays as it was.
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
        """An owner's key from what is stored.

        Raises:
            UnknownKey: the ring has no key of that id.
            SealBroken: the stored key was changed, or is another owner's.
        """
        return OwnerKey(key_id, owner, self._dek(owner, key_id, wrapped, kek_id))

    def rewrap(self, owner: str, key_id: UUID, wrapped: bytes, kek_id: str) -> tuple[bytes, str]:
        """What is stored, wrapped anew with the current key; raises as `unwrap`."""
        return self.wrap(owner, key_id, self._dek(owner, key_id, wrapped, kek_id))

    def _dek(self, owner: str, key_id: UUID, wrapped: bytes, kek_id: str) -> bytes:
        kek = self._held[0].get(kek_id) or self._sought(kek_id)
        if kek is None:
            raise UnknownKey("the owner's key is wrapped with a key that this key ring lacks")
        aad = associated_data(key_id, owner, _FIELD)
        try:
            return kek.decrypt(bytes(wrapped[:NONCE_BYTES]), bytes(wrapped[NONCE_BYTES:]), aad)
        except (InvalidTag, ValueError):
            raise SealBroken("the owner's stored key does not open") from None

    def _sought(self, kek_id: str) -> AESGCM | None:
        """A key that the source may have by now; one thread asks, not too often."""
        with self._lock:
            found = self._held[0].get(kek_id)
            if found is None and self._source is not None:
                if time.monotonic() - self._barren_at < RELOAD_CHECK_S:
                    return None
                self._held = _opened(self._source.read_with(kek_id))
                found = self._held[0].get(kek_id)
                if found is None:
                    self._barren_at = time.monotonic()
            return found


def new_key_id() -> str:
    """A name for a new key-encryption key."""
    return f"kek-{secrets.token_hex(8)}"


def _opened(ring: RingText) -> tuple[Mapping[str, AESGCM], str]:
    """Keys and the current one's id, as one value: threads replace and read it in one stroke."""
    if ring.current not in ring.keys:
        raise KeyRingError("the key ring's current key is not among its keys")
    if any(len(key) != KEY_BYTES for key in ring.keys.values()):
        raise KeyRingError("a key of the key ring is not 32 bytes long")
    return {kek_id: AESGCM(key) for kek_id, key in ring.keys.items()}, ring.current
