"""The cache of owners' unwrapped keys: age limit and size limit."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from models.content import PrivateContent
from tests.waiting import eventually
from vestry.crypto import owner_keys
from vestry.crypto.envelope import new_dek
from vestry.crypto.keyring import KeyRing
from vestry.crypto.owner_keys import MAX_AGE_S, OwnerKeys
from vestry.errors import UnknownKey
from workers.execution.heartbeat import Heartbeat


class Clock:
    """Replaces the module `time`."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(owner_keys, "time", clock)
    return clock


@pytest.fixture
def ring(tmp_path: Path) -> KeyRing:
    return KeyRing.generate(tmp_path / "ring.json")


class Database:
    """A connection that returns the wrapped keys of these owners, and records the reads."""

    def __init__(self, ring: KeyRing, *owners: str) -> None:
        self.rows = {}
        for owner in owners:
            key_id = uuid4()
            self.rows[owner] = (owner, key_id, *ring.wrap(owner, key_id, new_dek()))
        self.reads: list[list[str]] = []

    def execute(self, query: str, params: list[Any]) -> list[Any]:
        if "owner_keys" not in query:
            return []
        self.reads.append(sorted(params[0]))
        return [self.rows[owner] for owner in params[0] if owner in self.rows]


def store(keys: OwnerKeys, database: Database, owner: str) -> None:
    keys.unwrap(*database.rows[owner])


def test_expired_key_is_dropped_by_the_next_eviction(clock: Clock, ring: KeyRing) -> None:
    keys = OwnerKeys(ring)
    store(keys, Database(ring, "ann"), "ann")
    clock.now += MAX_AGE_S
    keys.evict_expired()
    assert keys.get("ann") is not None
    clock.now += 1
    keys.evict_expired()
    assert not keys._cache


def test_expired_key_is_not_used_before_an_eviction(clock: Clock, ring: KeyRing) -> None:
    keys = OwnerKeys(ring)
    store(keys, Database(ring, "ann"), "ann")
    clock.now += MAX_AGE_S + 1
    assert keys.get("ann") is None
    assert not keys._cache


def test_use_does_not_extend_the_age_limit_of_a_key(clock: Clock, ring: KeyRing) -> None:
    keys = OwnerKeys(ring)
    store(keys, Database(ring, "ann"), "ann")
    for _ in range(10):
        clock.now += MAX_AGE_S / 10
        assert keys.get("ann") is not None
    clock.now += 1
    assert keys.get("ann") is None


def test_least_recently_used_key_is_dropped_above_the_limit(
    ring: KeyRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner_keys, "MAX_OWNERS", 2)
    keys, database = OwnerKeys(ring), Database(ring, "ann", "bob", "cid")
    store(keys, database, "ann")
    store(keys, database, "bob")
    assert keys.get("ann") is not None
    store(keys, database, "cid")
    assert list(keys._cache) == ["ann", "cid"]


def test_worker_content_drops_expired_keys(clock: Clock, ring: KeyRing) -> None:
    content: Any = PrivateContent(ring)
    content.begin(Database(ring, "ann"), ["ann"])
    clock.now += MAX_AGE_S + 1
    content.evict_expired()
    assert not content.keys._cache
    with pytest.raises(UnknownKey):
        content.key_id("ann")


def test_key_is_valid_for_half_its_age_limit_after_every_begin(clock: Clock, ring: KeyRing) -> None:
    content: Any = PrivateContent(ring)
    database = Database(ring, "ann", "bob")
    content.begin(database, ["ann"])
    clock.now += MAX_AGE_S / 2
    content.begin(database, ["ann", "bob"])
    clock.now += MAX_AGE_S / 2
    assert content.key_id("ann") == database.rows["ann"][1]
    clock.now += 1
    content.begin(database, ["ann"])
    assert database.reads == [["ann"], ["bob"], ["ann"]]


def test_erased_owner_gets_no_key_after_expiry(clock: Clock, ring: KeyRing) -> None:
    content: Any = PrivateContent(ring)
    database = Database(ring, "ann")
    content.begin(database, ["ann"])
    database.rows.clear()
    clock.now += MAX_AGE_S + 1
    content.begin(database, ["ann"])
    with pytest.raises(UnknownKey, match="no data key in this database"):
        content.digest("ann")


def test_key_of_another_ring_fails_only_its_owner(ring: KeyRing, tmp_path: Path) -> None:
    content: Any = PrivateContent(ring)
    database = Database(ring, "ann")
    other = Database(KeyRing.generate(tmp_path / "other.json"), "bob")
    database.rows |= other.rows
    content.begin(database, ["ann", "bob"])
    assert content.key_id("ann") == database.rows["ann"][1]
    with pytest.raises(UnknownKey, match="wrapped with a key that this key ring lacks"):
        content.key_id("bob")


def test_heartbeat_runs_periodic_tasks_without_a_lease() -> None:
    calls: list[int] = []
    heartbeat = Heartbeat(_unreachable, 3.0, 0.01, 60.0, (lambda: calls.append(1),))
    heartbeat.start()
    try:
        eventually(lambda: calls, within=2)
    finally:
        heartbeat.stop()


def _unreachable() -> psycopg.Connection[Any]:
    raise psycopg.OperationalError
