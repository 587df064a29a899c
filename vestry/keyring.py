"""The key ring: key-encryption keys in one private file, which wrap every owner's data key.

The file is JSON, `{"current": id, "keys": {id: base64 of 32 bytes}}`, readable by its user alone.
Losing it makes all private content unreadable: back it up, apart from the database's backups.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from vestry.errors import KeyRingError, SealBroken, UnknownKey
from vestry.sealing import KEY_BYTES, NONCE_BYTES, OwnerKey, associated_data

_FIELD = "data key"


class KeyRing:
    """Key-encryption keys by id, one of them current: it wraps, the others only unwrap."""

    __slots__ = ("_keys", "current")

    def __init__(self, keys: Mapping[str, bytes], current: str) -> None:
        """Take the keys, 32 bytes each, and the id of the one that wraps new data keys."""
        if current not in keys:
            raise KeyRingError("the key ring's current key is not among its keys")
        if any(len(key) != KEY_BYTES for key in keys.values()):
            raise KeyRingError("a key of the key ring is not 32 bytes long")
        self._keys = {kek_id: AESGCM(key) for kek_id, key in keys.items()}
        self.current = current

    def __repr__(self) -> str:
        return f"KeyRing({len(self._keys)} keys)"

    def __reduce__(self) -> str:
        raise TypeError("a key ring is not to be copied out of the process")

    @classmethod
    def generate(cls, path: str | os.PathLike[str]) -> KeyRing:
        """Make a key ring of one new key and write it to `path`, mode 0600.

        The file appears complete or not at all.

        Raises:
            KeyRingError: something is there already; a key ring is never overwritten.
        """
        target = Path(path)
        kek_id, key = f"kek-{secrets.token_hex(8)}", os.urandom(KEY_BYTES)
        text = json.dumps({"current": kek_id, "keys": {kek_id: base64.b64encode(key).decode()}})
        draft = target.with_name(f"{target.name}.{secrets.token_hex(8)}.new")
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text + "\n")
                file.flush()
                os.fsync(file.fileno())
            # A link, unlike a rename, fails where the target exists.
            os.link(draft, target)
        except FileExistsError:
            raise KeyRingError("there is a key ring already; it is not overwritten") from None
        finally:
            with contextlib.suppress(FileNotFoundError):
                draft.unlink()
        return cls({kek_id: key}, kek_id)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> KeyRing:
        """Read a key ring.

        Raises:
            KeyRingError: it is absent, malformed, or others than its user may read it.
        """
        try:
            with Path(path).open(encoding="utf-8") as file:
                if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                    raise KeyRingError("the key ring can be read by others; make it mode 0600")
                raw = json.load(file)
            keys = {
                str(kek_id): base64.b64decode(key, validate=True)
                for kek_id, key in raw["keys"].items()
            }
            return cls(keys, str(raw["current"]))
        except FileNotFoundError:
            raise KeyRingError("the key ring file does not exist") from None
        except PermissionError:
            raise KeyRingError("the key ring file cannot be read by this user") from None
        except (ValueError, KeyError, TypeError, AttributeError, binascii.Error):
            # `from None`: a parser's error may quote the line, which is a key.
            raise KeyRingError("the key ring file is not a key ring") from None

    def wrap(self, owner: str, key_id: UUID, dek: bytes) -> tuple[bytes, str]:
        """An owner's data key as it is stored, and the id of the key that wrapped it."""
        nonce = os.urandom(NONCE_BYTES)
        aad = associated_data(key_id, owner, _FIELD)
        return nonce + self._keys[self.current].encrypt(nonce, dek, aad), self.current

    def unwrap(self, owner: str, key_id: UUID, wrapped: bytes, kek_id: str) -> OwnerKey:
        """An owner's key from what is stored.

        Raises:
            UnknownKey: the ring has no key of that id.
            SealBroken: the stored key was changed, or is another owner's.
        """
        kek = self._keys.get(kek_id)
        if kek is None:
            raise UnknownKey("the owner's key is wrapped with a key that this key ring lacks")
        aad = associated_data(key_id, owner, _FIELD)
        try:
            dek = kek.decrypt(bytes(wrapped[:NONCE_BYTES]), bytes(wrapped[NONCE_BYTES:]), aad)
        except (InvalidTag, ValueError):
            raise SealBroken("the owner's stored key does not open") from None
        return OwnerKey(key_id, owner, dek)
