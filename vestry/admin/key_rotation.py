"""Rotation of key-encryption keys, while producers and workers run.

Data keys are rewrapped and sealed content is not, so the duration of a rotation depends only on the
number of owners. The old key stays in the ring, to unwrap, until no data key is wrapped with it and
`retire` removes it.
"""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import psycopg

from vestry.crypto import keyring_file
from vestry.crypto.envelope import KEY_BYTES
from vestry.crypto.keyring import COMMAND, KeyRing, KeySource, new_key_id
from vestry.crypto.keyring_file import KeyFile, RingText
from vestry.errors import InvalidInput, KeyRingError, SealBroken, UnknownKey

Connection = psycopg.Connection[Any]

PAGE: Final = 500
"""Most data keys rewrapped in one transaction."""


@dataclass(frozen=True, slots=True)
class KeyStatus:
    """One key-encryption key.

    Attributes:
        key: its id.
        in_ring: the key ring has it.
        current: it wraps new data keys.
        wraps: number of owners' data keys wrapped with it.
        created_at: when it first wrapped one; None for an unused key.
        retired_at: when it was retired; it may wrap none since.
    """

    key: str
    in_ring: bool
    current: bool
    wraps: int
    created_at: dt.datetime | None
    retired_at: dt.datetime | None


@dataclass(frozen=True, slots=True)
class Rotated:
    """Result of a rotation.

    Attributes:
        current: the key that wraps now.
        new_key: this rotation created it or made it current; False if it resumed an earlier rotation.
        rewrapped: data keys rewrapped.
        not_rewrapped: data keys that stay wrapped with a key that the ring lacks.
    """

    current: str
    new_key: bool
    rewrapped: int
    not_rewrapped: int


def statuses(conn: Connection, source: KeySource) -> list[KeyStatus]:
    """All keys of key ring and database, oldest first."""
    ring = KeyRing.read(source)
    rows = conn.execute(
        """SELECT coalesce(w.kek_id, k.kek_id), coalesce(k.wraps, 0), w.created_at, w.retired_at
           FROM vestry.wrapping_keys w
           FULL JOIN (SELECT kek_id, count(*) AS wraps FROM vestry.owner_keys GROUP BY kek_id) k
             USING (kek_id)
           ORDER BY w.created_at, 1"""
    ).fetchall()
    stored = {row[0]: row[1:] for row in rows}
    unused = [key for key in ring.key_ids if key not in stored]
    return [
        KeyStatus(key, key in ring.key_ids, key == ring.current, *stored.get(key, (0, None, None)))
        for key in (*stored, *unused)
    ]


def add(source: KeySource) -> str:
    """Add a new key, which wraps nothing yet, to the ring's file; returns its id.

    For rings that are distributed other than by the file itself: distribute it, then rotate.

    Raises:
        KeyRingError: the ring is not a file.
    """
    with _changing(source) as change:
        key = new_key_id()
        change.replace(
            RingText({**change.ring.keys, key: os.urandom(KEY_BYTES)}, change.ring.current)
        )
        return key


def rotate(conn: Connection, source: KeySource) -> Rotated:
    """Rewrap every data key with a new key. After an interruption the next call resumes.

    The new key is the ring's newest if that wraps nothing yet, else it is created. If the ring comes
    from a command, its current key is used: make the new key current at the source first.

    Args:
        conn: an operator's connection, under autocommit.
        source: source of the key ring.

    Raises:
        KeyRingError: the ring cannot be read or written.
    """
    if not isinstance(source, KeyFile):
        return _rewrap_all(conn, KeyRing.read(source), new_key=False)
    with keyring_file.changing(source.path) as change:
        new_key = not _is_unfinished(conn, change.ring)
        if new_key:
            change.replace(_with_next_current(change.ring))
        return _rewrap_all(conn, KeyRing.read(source), new_key=new_key)


def retire(conn: Connection, source: KeySource, key: str | None = None) -> list[str]:
    """Retire keys that wrap nothing: remove them from the ring's file, and forbid rows that name them.

    Args:
        conn: an operator's connection, under autocommit.
        source: source of the key ring.
        key: id of the key; None for all that wrap nothing and are older than the current one.

    Returns:
        The keys retired.

    Raises:
        InvalidInput: the key is current or unknown, or still wraps data keys.
    """
    ring = KeyRing.read(source)
    older = ring.key_ids[: ring.key_ids.index(ring.current)]
    if key is not None and key == ring.current:
        raise InvalidInput("key", "is the current key; rotate first")
    if key is not None and key not in {status.key for status in statuses(conn, source)}:
        raise InvalidInput("key", "is in neither key ring nor database; see `vestry keys list`")
    retired = []
    for name in older if key is None else [key]:
        row = conn.execute("SELECT vestry.retire_key_v1(%s)", [name]).fetchone()
        assert row is not None  # noqa: S101 - a function call has one row
        if row[0] == 0:
            retired.append(name)
        elif key is not None:
            raise InvalidInput("key", f"still wraps the data keys of {row[0]} owners; rotate first")
    if isinstance(source, KeyFile) and set(retired) & set(ring.key_ids):
        with keyring_file.changing(source.path) as change:
            kept = {name: held for name, held in change.ring.keys.items() if name not in retired}
            change.replace(RingText(kept, change.ring.current))
    return retired


@contextmanager
def _changing(source: KeySource) -> Iterator[keyring_file.RingChange]:
    if not isinstance(source, KeyFile):
        raise KeyRingError(
            f"only a key ring in a file can be changed here; change that of {COMMAND} at its source"
        )
    with keyring_file.changing(source.path) as change:
        yield change


def _is_unfinished(conn: Connection, ring: RingText) -> bool:
    """Whether a rotation to the current key was interrupted."""
    others = [key for key in ring.keys if key != ring.current]
    row = conn.execute(
        "SELECT EXISTS (SELECT FROM vestry.owner_keys WHERE kek_id = ANY (%s))", [others]
    ).fetchone()
    return bool(row and row[0])


def _with_next_current(ring: RingText) -> RingText:
    *_, newest = ring.keys
    if newest != ring.current:
        return RingText(ring.keys, newest)
    key = new_key_id()
    return RingText({**ring.keys, key: os.urandom(KEY_BYTES)}, key)


def _rewrap_all(conn: Connection, ring: KeyRing, *, new_key: bool) -> Rotated:
    """Rewrap data keys until a whole pass rewraps none.

    A producer wraps new data keys with the old key until it reads its key ring again.
    """
    total = 0
    while True:
        stored, remaining = 0, 0
        after = None
        while page := _page(conn, ring.current, after):
            after = page[-1][0]
            rewrapped = [row for old in page if (row := _rewrapped(ring, old)) is not None]
            stored += _store(conn, rewrapped, ring.current)
            remaining += len(page) - len(rewrapped)
        total += stored
        if stored == 0:
            return Rotated(ring.current, new_key, total, remaining)


def _page(conn: Connection, current: str, after: object) -> list[Any]:
    return conn.execute(
        """SELECT key_id, owner, wrapped, kek_id FROM vestry.owner_keys
           WHERE kek_id <> %s AND (%s::uuid IS NULL OR key_id > %s) ORDER BY key_id LIMIT %s""",
        [current, after, after, PAGE],
    ).fetchall()


def _rewrapped(ring: KeyRing, row: Any) -> Any:
    """Key id, old and new wrapped key; None if the ring cannot unwrap the old one."""
    key_id, owner, wrapped, kek_id = row
    try:
        rewrapped, _ = ring.rewrap(owner, key_id, wrapped, kek_id)
    except (UnknownKey, SealBroken):
        return None
    return key_id, wrapped, rewrapped


def _store(conn: Connection, rows: list[Any], current: str) -> int:
    if not rows:
        return 0
    columns = [list(column) for column in zip(*rows, strict=True)]
    row = conn.execute(
        "SELECT vestry.rewrap_owner_keys_v1(%b::uuid[], %b::bytea[], %b::bytea[], %s)",
        [*columns, current],
    ).fetchone()
    return int(row[0]) if row else 0
