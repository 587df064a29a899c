"""How a privacy class stores content: sealed bytes with a key id, or plain text.

Two classes of one shape instead of an `if private` at every statement. A shareable worker holds a
`ShareableContent` and no key: it could not open private content if it were handed some.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol
from uuid import UUID

import psycopg

from vestry.crypto.envelope import OwnerKey, plain_digest
from vestry.crypto.keyring import KeyRing
from vestry.db.row_security import SET_OWNERS
from vestry.errors import UnknownKey, VestryError

Connection = psycopg.Connection[Any]
MAX_CACHED_OWNERS = 10_000
"""Unwrapped owner keys kept in memory; past it the cache starts afresh."""
MAX_CACHED_S = 300.0
"""How old the cache gets before it starts afresh; twice this, and the key of an owner who was forgotten
is gone from this process."""


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
        """Name the owners this transaction is about, and have their keys at hand."""
        ...

    def encode(self, owner: str, field: str, row_id: UUID, text: str) -> bytes | str:
        """What the content column holds."""
        ...

    def decode(self, owner: str, field: str, row_id: UUID, stored: bytes | str) -> str:
        """The text again."""
        ...

    def open_bytes(self, owner: str, field: str, row_id: UUID, stored: bytes) -> bytes:
        """The bytes of a file's part again."""
        ...

    def key_id(self, owner: str) -> UUID | None:
        """The owner's key, None where nothing is sealed."""
        ...

    def digest(self, owner: str) -> Callable[[str, bytes], bytes]:
        """The owner's content digest."""
        ...

    def evict_expired(self) -> None:
        """Called now and then, also while nothing is done: drop keys that were kept for long enough."""
        ...


def set_row_security_owners(conn: Connection, owners: Iterable[str]) -> None:
    """Set the owners that row security lets this transaction see; gone when it ends."""
    conn.execute(SET_OWNERS, [sorted(set(owners))])


class ShareableContent:
    """Content a cloud model may see: text in text columns."""

    privacy = "shareable"
    sealed = False

    def begin(self, conn: Connection, owners: Iterable[str]) -> None:
        """Name the owners; there are no keys to fetch."""
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
        """There are none."""

    def digest(self, owner: str) -> Callable[[str, bytes], bytes]:
        """SHA-256 with a purpose."""
        del owner
        return plain_digest


class PrivateContent:
    """Content for the platform's own machines: sealed under a key per owner."""

    privacy = "private"
    sealed = True

    def __init__(self, keyring: KeyRing) -> None:
        self.keyring = keyring
        self._keys: dict[str, OwnerKey] = {}
        # Those before it started afresh last: another thread may be about to use one of them.
        self._before: dict[str, OwnerKey] = {}
        self._faults: dict[str, str] = {}
        self._since = time.monotonic()
        self._turning = threading.Lock()

    def begin(self, conn: Connection, owners: Iterable[str]) -> None:
        """Name the owners and unwrap the keys not yet at hand.

        An owner whose key does not unwrap (another key ring is mounted) is no reason to leave the
        others: using that owner's key raises, and the next `enter` tries again.
        """
        wanted = set(owners)
        set_row_security_owners(conn, wanted)
        self.evict_expired()
        missing = wanted - self._keys.keys()
        if not missing:
            return
        if len(known := self._keys) + len(missing) > MAX_CACHED_OWNERS:
            self._start_afresh(known)
            missing = wanted
        for owner, key_id, wrapped, kek_id in conn.execute(
            "SELECT owner, key_id, wrapped, kek_id FROM vestry.owner_keys WHERE owner = ANY (%s)",
            [list(missing)],
        ):
            try:
                self._keys[owner] = self.keyring.unwrap(owner, key_id, wrapped, kek_id)
            except VestryError as error:
                self._faults[owner] = str(error)

    def evict_expired(self) -> None:
        """Start afresh where the cache is old enough."""
        known = self._keys
        if time.monotonic() - self._since > MAX_CACHED_S:
            self._start_afresh(known)

    def forget(self, owner: str) -> None:
        """Drop a cached key, so that the next use reads it again."""
        self._keys.pop(owner, None)
        self._before.pop(owner, None)

    def encode(self, owner: str, field: str, row_id: UUID, text: str) -> bytes | str:
        """The text sealed for one field of one row."""
        return self._key(owner).seal(field, row_id, text.encode())

    def decode(self, owner: str, field: str, row_id: UUID, stored: bytes | str) -> str:
        """The text again.

        Raises:
            SealBroken: it was changed, or moved from another row.
            UnknownKey: it is sealed with another key.
        """
        if isinstance(stored, str):
            raise TypeError("private content is sealed bytes")
        return self._key(owner).open(field, row_id, stored).decode()

    def open_bytes(self, owner: str, field: str, row_id: UUID, stored: bytes) -> bytes:
        """The bytes again; raises as `decode`."""
        return self._key(owner).open(field, row_id, stored)

    def key_id(self, owner: str) -> UUID | None:
        """The id of the owner's data key."""
        return self._key(owner).key_id

    def digest(self, owner: str) -> Callable[[str, bytes], bytes]:
        """HMAC under the owner's key."""
        return self._key(owner).digest

    def _start_afresh(self, known: dict[str, OwnerKey]) -> None:
        """Put these aside, unless another thread has: a second time would drop what it is using."""
        with self._turning:
            if self._keys is known:
                self._before, self._keys, self._faults = known, {}, {}
                self._since = time.monotonic()

    def _key(self, owner: str) -> OwnerKey:
        key = self._keys.get(owner) or self._before.get(owner)
        if key is None:
            fault = self._faults.get(owner, "the owner has no data key in this database")
            raise UnknownKey(fault)
        return key
