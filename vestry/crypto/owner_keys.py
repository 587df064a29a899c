"""Owners' data keys: made on first use in the caller's transaction, kept once committed."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from vestry.crypto.envelope import OwnerKey, new_dek
from vestry.db.operations import Operation, Query, uuid7
from vestry.errors import DatabaseError, KeyRingError, SettingsError, UnknownKey

if TYPE_CHECKING:
    from vestry.crypto.keyring import KeyRing

_KEPT: Final = 10_000
KEPT_S: Final = 600.0
"""How long an owner's key is kept in memory: that of one who was forgotten is gone after it."""

_ENSURE = """SELECT key_id, wrapped, kek_id, fresh
FROM vestry.ensure_owner_key_v1(%s::text, %s::uuid, %b::bytea, %s::text)"""
_CONTEXT = "SELECT set_config('vestry.owners', (ARRAY[%s::text])::text, true)"
_FIND = """SELECT key_id, wrapped, kek_id,
       created_xid IS NOT DISTINCT FROM pg_current_xact_id_if_assigned()
FROM vestry.owner_keys WHERE owner = %s"""


class OwnerKeys:
    """The key ring and the owners' keys unwrapped so far. Threads may share it."""

    def __init__(self, keyring: KeyRing | None) -> None:
        self._keyring = keyring
        self._keys: OrderedDict[str, tuple[OwnerKey, float]] = OrderedDict()
        self._lock = threading.Lock()

    def ensure(self, owner: str) -> Operation[OwnerKey]:
        """The owner's key, made in this transaction if there was none.

        A key that this very transaction made is not kept: should it roll back, the next job would
        be sealed with a key that exists nowhere.
        """
        kept = self._kept(owner)
        if kept is not None:
            return kept
        ring, key_id = self._ring(), uuid7()
        wrapped, kek_id = ring.wrap(owner, key_id, new_dek())
        try:
            rows = yield Query(_ENSURE, (owner, key_id, wrapped, kek_id))
        except UnknownKey:
            # The ring is older than the last rotation. This transaction is over, the next finds it new.
            with contextlib.suppress(KeyRingError):
                ring.renew()
            raise
        if not rows:
            raise DatabaseError(None)
        return self._unwrapped(owner, *rows[0])

    def find(self, owner: str) -> Operation[OwnerKey | None]:
        """The owner's key, or None where they never had one."""
        kept = self._kept(owner)
        if kept is not None:
            return kept
        # Row security shows the key of the owner named; together, they are one transaction.
        rows = yield Query(_CONTEXT, (owner,)), Query(_FIND, (owner,))
        return self._unwrapped(owner, *rows[1]) if rows[1:] else None

    def require(self, owner: str) -> Operation[OwnerKey]:
        """The owner's key; `UnknownKey` where there is none."""
        key = yield from self.find(owner)
        if key is None:
            raise UnknownKey("the owner has no key: nothing private of theirs can be read")
        return key

    def drop(self, owner: str) -> None:
        """Look the owner's key up again next time."""
        with self._lock:
            self._keys.pop(owner, None)

    def evict_expired(self) -> None:
        """Drop keys that were kept for long enough; called now and then, also while nothing is done."""
        oldest = time.monotonic() - KEPT_S
        with self._lock:
            for owner in [owner for owner, (_, since) in self._keys.items() if since < oldest]:
                del self._keys[owner]

    def _kept(self, owner: str) -> OwnerKey | None:
        with self._lock:
            key, since = self._keys.get(owner, (None, 0.0))
            if key is None:
                return None
            if time.monotonic() - since > KEPT_S:
                del self._keys[owner]
                return None
            self._keys.move_to_end(owner)
            return key

    def _unwrapped(
        self, owner: str, key_id: object, wrapped: bytes, kek_id: str, fresh: bool
    ) -> OwnerKey:
        key = self._ring().unwrap(owner, key_id, wrapped, kek_id)  # type: ignore[arg-type]
        if not fresh:
            self.evict_expired()
            with self._lock:
                self._keys[owner] = key, time.monotonic()
                while len(self._keys) > _KEPT:
                    self._keys.popitem(last=False)
        return key

    def _ring(self) -> KeyRing:
        if self._keyring is None:
            raise SettingsError(
                "private content needs the key ring: set VESTRY_KEYRING_FILE or _COMMAND"
            )
        return self._keyring
