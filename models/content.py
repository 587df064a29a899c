"""How a privacy class stores content: sealed bytes with a key id, or plain text.

One class per privacy class, instead of a condition at every statement. A shareable worker holds a
`ShareableContent` and no key: it cannot open private content.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol
from uuid import UUID

import psycopg

from vestry.crypto.envelope import OwnerKey, plain_digest
from vestry.crypto.keyring import KeyRing
from vestry.crypto.owner_keys import MAX_OWNERS, OwnerKeys
from vestry.db.operations import SET_OWNERS
from vestry.errors import UnknownKey, VestryError

Connection = psycopg.Connection[Any]

_NO_KEY: Final = (
    "the owner has no data key in this database: its content was never stored, or was erased"
)


class Content(Protocol):
    """Reads and writes the content columns of one privacy class."""

    @property
    def privacy(self) -> str:
        """`private` or `shareable`: also the prefix of the tables' names."""
        ...

    @property
    def sealed(self) -> bool:
        """Whether rows carry a `key_id` beside their content."""
        ...

    def begin(self, conn: Connection, owners: Iterable[str]) -> None:
        """Set the owners of this transaction's rows, and load their keys."""
        ...

    def encode(self, owner: str, field: str, row_id: UUID, text: str) -> bytes | str:
        """The value of a content column."""
        ...

    def decode(self, owner: str, field: str, row_id: UUID, stored: bytes | str) -> str:
        """The text of a content column."""
        ...

    def open_bytes(self, owner: str, field: str, row_id: UUID, stored: bytes) -> bytes:
        """The bytes of a part of a file."""
        ...

    def key_id(self, owner: str) -> UUID | None:
        """The id of the owner's key; None if nothing is sealed."""
        ...

    def digest(self, owner: str) -> Callable[[str, bytes], bytes]:
        """The owner's content digest."""
        ...

    def evict_expired(self) -> None:
        """Drop keys that are too old; called regularly, also by an idle process."""
        ...


def set_row_security_owners(conn: Connection, owners: Iterable[str]) -> None:
    """Set the owners whose rows row security shows to this transaction, until it ends."""
    conn.execute(SET_OWNERS, [sorted(set(owners))])


class ShareableContent:
    """Content that a cloud model may read: text in text columns."""

    privacy = "shareable"
    sealed = False

    def begin(self, conn: Connection, owners: Iterable[str]) -> None:
        """Set the owners of this transaction's rows; there are no keys."""
        set_row_security_owners(conn, owners)

    def encode(self, owner: str, field: str, row_id: UUID, text: str) -> bytes | str:
        """The text itself."""
        del owner, field, row_id
        return text

    def decode(self, owner: str, field: str, row_id: UUID, stored: bytes | str) -> str:
        """The text itself."""
        del owner, field, row_id
        if not isinstance(stored, str):
            raise TypeError("shareable content is text")
        return stored

    def open_bytes(self, owner: str, field: str, row_id: UUID, stored: bytes) -> bytes:
        """The bytes themselves."""
        del owner, field, row_id
        return stored

    def key_id(self, owner: str) -> UUID | None:
        """None: nothing is sealed."""
        del owner
        return None

    def evict_expired(self) -> None:
        """Do nothing: there are no keys."""

    def digest(self, owner: str) -> Callable[[str, bytes], bytes]:
        """SHA-256 of purpose and data."""
        del owner
        return plain_digest


class PrivateContent:
    """Content for the operator's own machines: sealed under a key per owner.

    Attributes:
        keys: the process's cache of owner keys.
    """

    privacy = "private"
    sealed = True

    def __init__(self, keyring: KeyRing) -> None:
        self.keys = OwnerKeys(keyring)
        self._faults: dict[str, str] = {}

    def begin(self, conn: Connection, owners: Iterable[str]) -> None:
        """Set the owners, and load their keys, usable for at least half of `owner_keys.MAX_AGE_S`.

        An owner whose key does not unwrap (another key ring is mounted) does not affect the others:
        using that owner's key raises, and the next `begin` tries again.
        """
        owners = set(owners)
        set_row_security_owners(conn, owners)
        expiring = self.keys.expiring(owners)
        if not expiring:
            return
        if len(self._faults) > MAX_OWNERS:
            self._faults.clear()
        for owner, key_id, wrapped, kek_id in conn.execute(
            "SELECT owner, key_id, wrapped, kek_id FROM vestry.owner_keys WHERE owner = ANY (%s)",
            [expiring],
        ):
            try:
                self.keys.unwrap(owner, key_id, wrapped, kek_id)
            except VestryError as error:
                self._faults[owner] = str(error)

    def evict_expired(self) -> None:
        """Drop keys that are too old."""
        self.keys.evict_expired()

    def encode(self, owner: str, field: str, row_id: UUID, text: str) -> bytes | str:
        """The text, sealed for one field of one row."""
        return self._key(owner).seal(field, row_id, text.encode())

    def decode(self, owner: str, field: str, row_id: UUID, stored: bytes | str) -> str:
        """The text of a sealed column.

        Raises:
            SealBroken: it was changed, or moved from another row.
            UnknownKey: it is sealed with another key.
        """
        if isinstance(stored, str):
            raise TypeError("private content is sealed bytes")
        return self._key(owner).open(field, row_id, stored).decode()

    def open_bytes(self, owner: str, field: str, row_id: UUID, stored: bytes) -> bytes:
        """The bytes of a part of a file; raises as `decode`."""
        return self._key(owner).open(field, row_id, stored)

    def key_id(self, owner: str) -> UUID | None:
        """The id of the owner's data key."""
        return self._key(owner).key_id

    def digest(self, owner: str) -> Callable[[str, bytes], bytes]:
        """HMAC under the owner's key."""
        return self._key(owner).digest

    def _key(self, owner: str) -> OwnerKey:
        key = self.keys.get(owner)
        if key is None:
            raise UnknownKey(self._faults.get(owner, _NO_KEY))
        return key
