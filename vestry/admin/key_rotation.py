"""Rotation of key-encryption keys, while producers and workers go on.

A data key is wrapped anew; what it seals is not touched, so that a rotation takes as long as there are
owners, whatever they own. The old key stays in the ring, and opens what it wrapped, until nothing is
wrapped with it and `retire` takes it out.
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
"""Data keys wrapped anew in one transaction."""


@dataclass(frozen=True, slots=True)
class KeyStatus:
    """One key-encryption key.

    Attributes:
        key: its id.
        in_ring: the key ring has it.
        current: it wraps new data keys.
        wraps: how many owners' data keys are wrapped with it.
        created_at: when it first wrapped one; None for a key not used yet.
        retired_at: since when it may wrap none.
    """

    key: str
    in_ring: bool
    current: bool
    wraps: int
    created_at: dt.datetime | None
    retired_at: dt.datetime | None


@dataclass(frozen=True, slots=True)
class Rotated:
    """What a rotation did.

    Attributes:
        current: the key that wraps now.
        made: it was made, or taken into use, by this rotation; False where one was taken up again.
        rewrapped: data keys wrapped anew.
        left: data keys that are still wrapped with another, since the ring lacks that one.
    """

    current: str
    made: bool
    rewrapped: int
    left: int


def statuses(conn: Connection, source: KeySource) -> list[KeyStatus]:
    """All keys that ring or database know, oldest first."""
    ring = KeyRing.read(source)
    rows = conn.execute(
        """SELECT coalesce(w.kek_id, k.kek_id), coalesce(k.wraps, 0), w.created_at, w.retired_at
           FROM vestry.wrapping_keys w
           FULL JOIN (SELECT kek_id, count(*) AS wraps FROM vestry.owner_keys GROUP BY kek_id) k
             USING (kek_id)
           ORDER BY w.created_at, 1"""
    ).fetchall()
    known = {row[0]: row[1:] for row in rows}
    unused = [key for key in ring.key_ids if key not in known]
    return [
        KeyStatus(key, key in ring.key_ids, key == ring.current, *known.get(key, (0, None, None)))
        for key in (*known, *unused)
    ]


def add(source: KeySource) -> str:
    """Put a new key into the ring's file that wraps nothing yet; its id.

    For rings that reach their readers by other ways than the file itself: hand it round, then rotate.

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
    """Have every data key wrapped with a new key. Broken off, the next call takes it up again.

    The new key is the ring's youngest where that wraps nothing yet, else made here. Where the ring
    comes from a command its current key counts, and that is for its keeper to change before.

    Args:
        conn: an operator's connection, under autocommit.
        source: of the key ring.

    Raises:
        KeyRingError: the ring cannot be read or written.
    """
    if not isinstance(source, KeyFile):
        return _rewrap_all(conn, KeyRing.read(source), made=False)
    with keyring_file.changing(source.path) as change:
        made = not _is_unfinished(conn, change.ring)
        if made:
            change.replace(_with_next_current(change.ring))
        return _rewrap_all(conn, KeyRing.read(source), made=made)


def retire(conn: Connection, source: KeySource, key: str | None = None) -> list[str]:
    """Take keys that wrap nothing out of use: out of the ring's file, and no row may name them again.

    Args:
        conn: an operator's connection, under autocommit.
        source: of the key ring.
        key: which; None for all that wrap nothing, but the current one and those after it.

    Returns:
        The keys retired.

    Raises:
        InvalidInput: the key is current, or unknown, or still wraps something.
    """
    ring = KeyRing.read(source)
    older = ring.key_ids[: ring.key_ids.index(ring.current)]
    if key is not None and key == ring.current:
        raise InvalidInput("key", "is the current one; rotate first")
    if key is not None and key not in {status.key for status in statuses(conn, source)}:
        raise InvalidInput("key", "is in neither key ring nor database; see `vestry keys list`")
    gone = []
    for name in older if key is None else [key]:
        row = conn.execute("SELECT vestry.retire_key_v1(%s)", [name]).fetchone()
        assert row is not None  # noqa: S101 - a function call has one row
        if row[0] == 0:
            gone.append(name)
        elif key is not None:
            raise InvalidInput("key", f"still wraps the data keys of {row[0]} owners; rotate first")
    if isinstance(source, KeyFile) and set(gone) & set(ring.key_ids):
        with keyring_file.changing(source.path) as change:
            kept = {name: held for name, held in change.ring.keys.items() if name not in gone}
            change.replace(RingText(kept, change.ring.current))
    return gone


@contextmanager
def _changing(source: KeySource) -> Iterator[keyring_file.RingChange]:
    if not isinstance(source, KeyFile):
        raise KeyRingError(
            f"only a key ring in a file can be changed here; one of {COMMAND} where it is kept"
        )
    with keyring_file.changing(source.path) as change:
        yield change


def _is_unfinished(conn: Connection, ring: RingText) -> bool:
    """Whether a rotation to the current key was broken off."""
    others = [key for key in ring.keys if key != ring.current]
    row = conn.execute(
        "SELECT EXISTS (SELECT FROM vestry.owner_keys WHERE kek_id = ANY (%s))", [others]
    ).fetchone()
    return bool(row and row[0])


def _with_next_current(ring: RingText) -> RingText:
    *_, youngest = ring.keys
    if youngest != ring.current:
        return RingText(ring.keys, youngest)
    key = new_key_id()
    return RingText({**ring.keys, key: os.urandom(KEY_BYTES)}, key)


def _rewrap_all(conn: Connection, ring: KeyRing, *, made: bool) -> Rotated:
    """Wrap what is not wrapped with the current key, until a whole round finds nothing it could do.

    New data keys may be wrapped with the old one as long as a producer has not looked at its ring.
    """
    total = 0
    while True:
        done, left = 0, 0
        after = None
        while page := _page(conn, ring.current, after):
            after = page[-1][0]
            anew = [row for old in page if (row := _rewrapped(ring, old)) is not None]
            done += _store(conn, anew, ring.current)
            left += len(page) - len(anew)
        total += done
        if done == 0:
            return Rotated(ring.current, made, total, left)


def _page(conn: Connection, current: str, after: object) -> list[Any]:
    return conn.execute(
        """SELECT key_id, owner, wrapped, kek_id FROM vestry.owner_keys
           WHERE kek_id <> %s AND (%s::uuid IS NULL OR key_id > %s) ORDER BY key_id LIMIT %s""",
        [current, after, after, PAGE],
    ).fetchall()


def _rewrapped(ring: KeyRing, row: Any) -> Any:
    """Key id, what was read, what is to be in its place; None where the ring cannot open it."""
    key_id, owner, wrapped, kek_id = row
    try:
        anew, _ = ring.rewrap(owner, key_id, wrapped, kek_id)
    except (UnknownKey, SealBroken):
        return None
    return key_id, wrapped, anew


def _store(conn: Connection, rows: list[Any], current: str) -> int:
    if not rows:
        return 0
    columns = [list(column) for column in zip(*rows, strict=True)]
    row = conn.execute(
        "SELECT vestry.rewrap_owner_keys_v1(%b::uuid[], %b::bytea[], %b::bytea[], %s)",
        [*columns, current],
    ).fetchone()
    return int(row[0]) if row else 0
