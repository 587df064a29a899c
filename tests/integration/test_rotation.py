"""Rotation and retirement of key-encryption keys; sealed content still opens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.producer_helpers import HELLO, count
from vestry import InvalidInput, KeyRing, UnknownKey, Vestry
from vestry.admin import key_rotation
from vestry.crypto.envelope import PAYLOAD
from vestry.crypto.keyring import COMMAND, KeyCommand
from vestry.crypto.keyring_file import KeyFile
from workers.stack.dev_stack import DevStack

OWNERS = [f"owner-{number}" for number in range(7)]


@dataclass(frozen=True)
class Site:
    """A producer and an operator, with a separate key ring."""

    stack: DevStack
    vestry: Vestry
    conn: psycopg.Connection[Any]
    operator: psycopg.Connection[Any]
    root: psycopg.Connection[Any]
    path: Path

    @property
    def source(self) -> KeyFile:
        return KeyFile(self.path)


@pytest.fixture
def site(clean: DevStack, tmp_path: Path) -> Iterator[Site]:
    path = tmp_path / "ring.json"
    KeyRing.generate(path)
    urls = [clean.database_url(f"vestry_{role}") for role in ("producer", "operator")]
    with ExitStack() as resources:
        vestry = resources.enter_context(Vestry(urls[0], path))
        conns = [
            resources.enter_context(psycopg.connect(url, autocommit=True))
            for url in (*urls, clean.superuser_url)
        ]
        yield Site(clean, vestry, *conns, path)


def enqueue(vestry: Vestry, conn: psycopg.Connection[Any], *owners: str) -> None:
    for owner in owners:
        vestry.enqueue(conn, HELLO, owner=owner, privacy="private")


def openable_payloads(root: psycopg.Connection[Any], path: Path) -> int:
    """Number of payloads that open with the ring in the file."""
    ring = KeyRing.load(path)
    rows = root.execute(
        """SELECT p.job_id, p.owner, p.body, k.key_id, k.wrapped, k.kek_id
           FROM vestry.private_payloads p JOIN vestry.owner_keys k USING (owner)"""
    ).fetchall()
    for job, owner, body, *stored in rows:
        ring.unwrap(owner, *stored).open(PAYLOAD, job, body)
    return len(rows)


def wrapping(root: psycopg.Connection[Any]) -> dict[str, int]:
    return dict(
        root.execute("SELECT kek_id, count(*) FROM vestry.owner_keys GROUP BY 1").fetchall()
    )


def test_rewrapped_data_keys_open_earlier_content(site: Site) -> None:
    enqueue(site.vestry, site.conn, *OWNERS)
    old = KeyRing.load(site.path).current
    # A ring loaded before the rotation
    early = KeyRing.load(site.path)
    done = key_rotation.rotate(site.operator, site.source)
    assert (done.rewrapped, done.not_rewrapped, done.new_key) == (len(OWNERS), 0, True)
    assert wrapping(site.root) == {done.current: len(OWNERS)}
    assert done.current != old
    assert openable_payloads(site.root, site.path) == len(OWNERS)
    row = site.root.execute(
        "SELECT key_id, wrapped, kek_id FROM vestry.owner_keys LIMIT 1"
    ).fetchone()
    owner = site.root.execute("SELECT owner FROM vestry.owner_keys LIMIT 1").fetchone()[0]
    early.unwrap(owner, *row)
    # A running producer continues, for old and new owners.
    enqueue(site.vestry, site.conn, OWNERS[0], "late")
    assert wrapping(site.root) == {done.current: len(OWNERS) + 1}


def test_interrupted_rotation_is_resumed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    enqueue(site.vestry, site.conn, *OWNERS)
    monkeypatch.setattr(key_rotation, "PAGE", 3)
    store, pages = key_rotation._store, []

    def breaking(*args: Any) -> int:
        if pages:
            raise KeyboardInterrupt
        pages.append(args)
        return store(*args)

    with monkeypatch.context() as patch:
        patch.setattr(key_rotation, "_store", breaking)
        with pytest.raises(KeyboardInterrupt):
            key_rotation.rotate(site.operator, site.source)
    assert len(wrapping(site.root)) == 2
    assert openable_payloads(site.root, site.path) == len(OWNERS)
    current = KeyRing.load(site.path).current
    done = key_rotation.rotate(site.operator, site.source)
    assert (done.current, done.new_key, done.rewrapped) == (current, False, len(OWNERS) - 3)
    assert wrapping(site.root) == {current: len(OWNERS)}
    assert len(KeyRing.load(site.path).key_ids) == 2


def test_rotation_uses_a_key_distributed_before(site: Site) -> None:
    enqueue(site.vestry, site.conn, "ann")
    before = KeyRing.load(site.path).current
    key = key_rotation.add(site.source)
    assert KeyRing.load(site.path).current == before
    assert key_rotation.rotate(site.operator, site.source).current == key
    assert wrapping(site.root) == {key: 1}
    listed = {status.key: status for status in key_rotation.statuses(site.operator, site.source)}
    assert (listed[before].wraps, listed[before].current) == (0, False)
    assert (listed[key].wraps, listed[key].current) == (1, True)


def test_key_is_retired_once_it_wraps_nothing(site: Site) -> None:
    enqueue(site.vestry, site.conn, *OWNERS)
    old = KeyRing.load(site.path).current
    assert key_rotation.retire(site.operator, site.source) == []
    with pytest.raises(InvalidInput, match="current"):
        key_rotation.retire(site.operator, site.source, old)
    with pytest.raises(InvalidInput, match="neither"):
        key_rotation.retire(site.operator, site.source, "no-such-key")
    stale = KeyRing({old: b"k" * 32}, old)
    current = key_rotation.rotate(site.operator, site.source).current
    assert key_rotation.retire(site.operator, site.source) == [old]
    assert KeyRing.load(site.path).key_ids == (current,)
    assert openable_payloads(site.root, site.path) == len(OWNERS)
    # A producer with an old ring can no longer wrap with it.
    with (
        Vestry(site.stack.database_url("vestry_producer"), stale) as late,
        pytest.raises(UnknownKey, match="older than the last rotation"),
    ):
        late.enqueue(site.conn, HELLO, owner="new", privacy="private")
    assert wrapping(site.root) == {current: len(OWNERS)}


def test_key_that_wraps_data_keys_is_not_retired(site: Site) -> None:
    enqueue(site.vestry, site.conn, "ann")
    old = KeyRing.load(site.path).current
    key_rotation.rotate(site.operator, site.source)
    site.root.execute("UPDATE vestry.owner_keys SET kek_id = %s", [old])
    with pytest.raises(InvalidInput, match="still wraps the data keys of 1 owners"):
        key_rotation.retire(site.operator, site.source, old)
    assert key_rotation.retire(site.operator, site.source) == []
    assert old in KeyRing.load(site.path).key_ids


def test_retiring_waits_for_a_producer_that_stores_a_key(site: Site) -> None:
    enqueue(site.vestry, site.conn, "bob")
    old = KeyRing.load(site.path).current
    with psycopg.connect(site.stack.database_url("vestry_producer")) as producer:
        site.vestry.enqueue(producer, HELLO, owner="ann", privacy="private")
        key_rotation.rotate(site.operator, site.source)
        site.operator.execute("SET lock_timeout = '200ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            key_rotation.retire(site.operator, site.source, old)
        producer.commit()
    with pytest.raises(InvalidInput, match="still wraps"):
        key_rotation.retire(site.operator, site.source, old)


def test_data_keys_of_missing_keys_are_counted(site: Site) -> None:
    enqueue(site.vestry, site.conn, "ann", "bob")
    site.root.execute("UPDATE vestry.owner_keys SET kek_id = 'lost' WHERE owner = 'bob'")
    done = key_rotation.rotate(site.operator, site.source)
    assert (done.rewrapped, done.not_rewrapped) == (1, 1)


def test_ring_of_a_command_is_rotated_at_its_source(site: Site) -> None:
    enqueue(site.vestry, site.conn, "ann")
    command = KeyCommand(f"cat {site.path}")
    assert key_rotation.rotate(site.operator, command).rewrapped == 0
    with pytest.raises(Exception, match=COMMAND):
        key_rotation.add(command)
    key_rotation.add(site.source)
    with key_rotation.keyring_file.changing(site.path) as change:
        change.replace(key_rotation._with_next_current(change.ring))
    done = key_rotation.rotate(site.operator, command)
    assert (done.rewrapped, done.new_key) == (1, False)
    assert wrapping(site.root) == {done.current: 1}
    assert count(site.root, "wrapping_keys") == 2


@pytest.mark.parametrize("role", ["vestry_producer", "vestry_private", "vestry_cloud"])
def test_other_roles_cannot_change_wrapped_keys(site: Site, role: str) -> None:
    with psycopg.connect(site.stack.database_url(role), autocommit=True) as conn:
        for statement in (
            "SELECT vestry.rewrap_owner_keys_v1('{}', '{}', '{}', 'k')",
            "SELECT vestry.retire_key_v1('k')",
            "UPDATE vestry.owner_keys SET kek_id = 'k'",
            "DELETE FROM vestry.owner_keys",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                conn.execute(statement)
