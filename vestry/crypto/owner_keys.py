"""Owners' data keys: created on first use in the caller's transaction, cached once committed."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final
from uuid import UUID

from vestry.crypto.envelope import OwnerKey, new_dek
from vestry.db.operations import Operation, Query, row_security_owners, uuid7
from vestry.errors import DatabaseError, KeyRingError, SettingsError, UnknownKey

if TYPE_CHECKING:
    from vestry.crypto.keyring import KeyRing

MAX_OWNERS: Final = 10_000
"""Unwrapped keys in memory; above it the least recently used one is dropped."""
MAX_AGE_S: Final = 600.0
"""Longest time an unwrapped key stays in memory, also that of a forgotten owner."""

_ENSURE: Final = """SELECT key_id, wrapped, kek_id, fresh
FROM vestry.ensure_owner_key_v1(%s::text, %s::uuid, %b::bytea, %s::text)"""
_FIND: Final = """SELECT key_id, wrapped, kek_id,
       created_xid IS NOT DISTINCT FROM pg_current_xact_id_if_assigned()
FROM vestry.owner_keys WHERE owner = %s"""


class OwnerKeys:
    """The key ring and a cache of owners' unwrapped keys. Threads may share it."""

    def __init__(self, keyring: KeyRing | None) -> None:
        self._keyring = keyring
        self._cache: OrderedDict[str, tuple[OwnerKey, float]] = OrderedDict()
        self._lock = threading.Lock()

    def ensure(self, owner: str) -> Operation[OwnerKey]:
        """The owner's key, created in this transaction if there was none.

        A key that this transaction created is not cached: after a rollback, the next job would be
        sealed with a key that is not stored.
        """
        cached = self.get(owner)
        if cached is not None:
            return cached
        keyring, key_id = self._require_keyring(), uuid7()
        wrapped, kek_id = keyring.wrap(owner, key_id, new_dek())
        try:
            rows = yield Query(_ENSURE, (owner, key_id, wrapped, kek_id))
        except UnknownKey:
            # The key ring is older than the last rotation. This transaction is over; the next one
            # wraps with the current key.
            with contextlib.suppress(KeyRingError):
                keyring.renew()
            raise
        if not rows:
            raise DatabaseError(None)
        return self._unwrap_row(owner, *rows[0])

    def find(self, owner: str) -> Operation[OwnerKey | None]:
        """The owner's key; None if the owner has none."""
        cached = self.get(owner)
        if cached is not None:
            return cached
        # Row security shows the key of the named owner; together, they are one transaction.
        rows = yield row_security_owners([owner]), Query(_FIND, (owner,))
        return self._unwrap_row(owner, *rows[1]) if rows[1:] else None

    def require(self, owner: str) -> Operation[OwnerKey]:
        """The owner's key.

        Raises:
            UnknownKey: the owner has none.
        """
        key = yield from self.find(owner)
        if key is None:
            raise UnknownKey("the owner has no data key: there is no private content to read")
        return key

    def get(self, owner: str) -> OwnerKey | None:
        """The owner's cached key, if it is not too old."""
        with self._lock:
            key, since = self._cache.get(owner, (None, 0.0))
            if key is None:
                return None
            if time.monotonic() - since > MAX_AGE_S:
                del self._cache[owner]
                return None
            self._cache.move_to_end(owner)
            return key

    def expiring(self, owners: Iterable[str]) -> list[str]:
        """Owners whose key is not cached, or is older than half of `MAX_AGE_S`."""
        oldest = time.monotonic() - MAX_AGE_S / 2
        with self._lock:
            return [
                owner
                for owner in owners
                if owner not in self._cache or self._cache[owner][1] < oldest
            ]

    def unwrap(self, owner: str, key_id: UUID, wrapped: bytes, kek_id: str) -> OwnerKey:
        """Unwrap a committed key and cache it.

        Raises:
            UnknownKey, SealBroken: as `KeyRing.unwrap`.
        """
        key = self._require_keyring().unwrap(owner, key_id, wrapped, kek_id)
        self.evict_expired()
        with self._lock:
            self._cache[owner] = key, time.monotonic()
            self._cache.move_to_end(owner)
            while len(self._cache) > MAX_OWNERS:
                self._cache.popitem(last=False)
        return key

    def drop(self, owner: str) -> None:
        """Remove the owner's key from the cache; the next use reads it again."""
        with self._lock:
            self._cache.pop(owner, None)

    def evict_expired(self) -> None:
        """Remove keys older than `MAX_AGE_S`; to be called regularly, also by an idle process."""
        oldest = time.monotonic() - MAX_AGE_S
        with self._lock:
            for owner in [owner for owner, (_, since) in self._cache.items() if since < oldest]:
                del self._cache[owner]

    def _unwrap_row(
        self, owner: str, key_id: UUID, wrapped: bytes, kek_id: str, created_here: bool
    ) -> OwnerKey:
        if created_here:
            return self._require_keyring().unwrap(owner, key_id, wrapped, kek_id)
        return self.unwrap(owner, key_id, wrapped, kek_id)

    def _require_keyring(self) -> KeyRing:
        if self._keyring is None:
            raise SettingsError("private content needs the key ring: set VESTRY_KEYRING_FILE")
        return self._keyring
