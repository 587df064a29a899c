"""Sealing of private content under its owner's key, and digests that compare it without opening it.

Envelope of sealed content; the database checks it up to the key id:

    byte 0       version, 0x01
    bytes 1-16   key id (UUID)
    bytes 17-28  nonce, random
    bytes 29-    AES-256-GCM ciphertext and its 16-byte tag

The associated data is row id, owner and field, so that sealed bytes moved to another row, owner or
column do not open. Random 96-bit nonces are safe for 2**32 seals under one key (NIST SP 800-38D,
section 8.3); there is one key per owner.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from typing import Final
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from vestry.errors import SealBroken, UnknownKey

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
VERSION: Final = b"\x01"
HEADER_BYTES: Final = 1 + 16 + NONCE_BYTES
"""Version, key id, nonce."""

PAYLOAD: Final = "payload"
"""A job's payload; the row id is the job's."""
RESULT: Final = "result"
"""A job's result; the row id is the job's."""
CHUNK: Final = "chunk"
"""A chunk's text; the row id is the chunk's."""
DETAIL: Final = "detail"
"""A document's external id, date and metadata; the row id is the document's."""
BLOB: Final = "blob"
"""A part of a job's file; the row id is the job's."""


def blob_field(name: str, part: int) -> str:
    """Field name for sealing a part of a file, so that no part opens in the position of another."""
    return f"{BLOB}/{name}/{part}"


class OwnerKey:
    """One owner's data key: seals, opens and digests. Its repr shows no key material.

    Attributes:
        key_id: the key's id, which the envelope names.
        owner: the owner it belongs to.
    """

    __slots__ = ("_aead", "_mac_key", "key_id", "owner")

    def __init__(self, key_id: UUID, owner: str, dek: bytes) -> None:
        """Derive the keys from an owner's 32-byte data key (`new_dek`)."""
        if len(dek) != KEY_BYTES:
            raise UnknownKey(f"the data key is not {KEY_BYTES} bytes long")
        self.key_id = key_id
        self.owner = owner
        # Separate keys for sealing and for digests, so that neither use weakens the other.
        self._aead = AESGCM(_derive(dek, key_id, b"vestry/1/seal"))
        self._mac_key = _derive(dek, key_id, b"vestry/1/digest")

    def __repr__(self) -> str:
        return f"OwnerKey(key_id={self.key_id})"

    def __reduce__(self) -> str:
        raise TypeError("an owner's key cannot be pickled or copied")

    def seal(self, field: str, row_id: UUID, plaintext: bytes) -> bytes:
        """Seal content for one field of one row; it grows by `HEADER_BYTES + TAG_BYTES`."""
        nonce = os.urandom(NONCE_BYTES)
        aad = associated_data(row_id, self.owner, field)
        return VERSION + self.key_id.bytes + nonce + self._aead.encrypt(nonce, plaintext, aad)

    def open(self, field: str, row_id: UUID, sealed: bytes) -> bytes:
        """The plaintext.

        Raises:
            UnknownKey: it is sealed with another key.
            SealBroken: it is not an envelope, was changed, or belongs to another row, owner or field.
        """
        if len(sealed) < HEADER_BYTES + TAG_BYTES or sealed[:1] != VERSION:
            raise SealBroken("the content is not a sealed envelope")
        if sealed[1:17] != self.key_id.bytes:
            raise UnknownKey("the content is sealed with another key of the owner")
        nonce = bytes(sealed[17:HEADER_BYTES])
        aad = associated_data(row_id, self.owner, field)
        try:
            return self._aead.decrypt(nonce, bytes(sealed[HEADER_BYTES:]), aad)
        except InvalidTag:
            raise SealBroken from None

    def digest(self, purpose: str, data: bytes) -> bytes:
        """32 bytes of HMAC-SHA256, which reveal only whether data are equal."""
        return hmac.digest(self._mac_key, _purposed(purpose, data), hashlib.sha256)


def plain_digest(purpose: str, data: bytes) -> bytes:
    """SHA-256 with the same interface as `OwnerKey.digest`, for shareable content."""
    return hashlib.sha256(_purposed(purpose, data)).digest()


def new_dek() -> bytes:
    """A new random data key."""
    return os.urandom(KEY_BYTES)


def associated_data(row_id: UUID, owner: str, field: str) -> bytes:
    """Row id, owner and field, each prefixed with its length, so that no two triples collide."""
    return b"".join(_sized(part) for part in (row_id.bytes, owner.encode(), field.encode()))


def _purposed(purpose: str, data: bytes) -> bytes:
    return _sized(purpose.encode()) + data


def _sized(part: bytes) -> bytes:
    return len(part).to_bytes(4) + part


def _derive(dek: bytes, key_id: UUID, use: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=key_id.bytes, info=use).derive(dek)
