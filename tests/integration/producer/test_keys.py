"""Owner keys of private payloads, and refusals without them."""

from __future__ import annotations

import json
import threading
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from tests.producer_helpers import HELLO, count
from vestry import (
    Embedding,
    KeyRing,
    OwnerForgotten,
    SealBroken,
    SettingsError,
    UnknownKey,
    Vestry,
)
from vestry.crypto.envelope import PAYLOAD
from workers.stack.dev_stack import DevStack


def test_private_content_is_stored_sealed_and_opens_with_the_ring(
    vestry: Vestry,
    conn: psycopg.Connection[Any],
    root: psycopg.Connection[Any],
    clean: DevStack,
) -> None:
    job = vestry.enqueue(conn, Embedding(texts=["canary-51c"]), owner="alice", privacy="private")
    conn.commit()
    body, key_id = root.execute("SELECT body, key_id FROM vestry.private_payloads").fetchone()  # type: ignore[misc]
    assert b"canary" not in body
    wrapped, kek_id = root.execute("SELECT wrapped, kek_id FROM vestry.owner_keys").fetchone()  # type: ignore[misc]
    key = KeyRing.load(clean.keyring).unwrap("alice", key_id, wrapped, kek_id)
    assert json.loads(key.open(PAYLOAD, job.id, body))["texts"] == ["canary-51c"]
    with pytest.raises(SealBroken):
        key.open(PAYLOAD, uuid4(), body)


def test_rolled_back_key_is_never_used_again(
    vestry: Vestry, conn: psycopg.Connection[Any], root: psycopg.Connection[Any]
) -> None:
    # Given a key created in a transaction, and in a savepoint, that rolled back
    vestry.enqueue(conn, HELLO, owner="alice", privacy="private")
    conn.rollback()
    conn.execute("SAVEPOINT s")
    vestry.enqueue(conn, HELLO, owner="alice", privacy="private")
    conn.execute("ROLLBACK TO s")
    # When the owner's next job commits, then its key is stored and cached
    for _ in range(3):
        vestry.enqueue(conn, HELLO, owner="alice", privacy="private")
        conn.commit()
    stored = root.execute("SELECT key_id FROM vestry.owner_keys").fetchall()
    used = root.execute("SELECT DISTINCT key_id FROM vestry.private_payloads").fetchall()
    assert stored == used
    assert len(stored) == 1
    assert list(vestry._keys._cache) == ["alice"]


def test_concurrent_producers_agree_on_a_new_owners_key(
    clean: DevStack, root: psycopg.Connection[Any]
) -> None:
    url, barrier, errors = clean.database_url("vestry_producer"), threading.Barrier(4), []

    def produce() -> None:
        with Vestry(url, clean.keyring) as client, psycopg.connect(url) as conn:
            barrier.wait()
            try:
                for number in range(20):
                    client.enqueue(conn, HELLO, owner=f"owner-{number}", privacy="private")
                    conn.commit()
            except Exception as error:
                errors.append(error)

    threads = [threading.Thread(target=produce) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert count(root, "jobs") == 80
    assert count(root, "owner_keys") == 20
    mismatched = root.execute(
        """SELECT count(*) FROM vestry.private_payloads p
           JOIN vestry.owner_keys k USING (owner) WHERE k.key_id <> p.key_id"""
    ).fetchone()
    assert mismatched == (0,)


def test_key_deleted_from_the_database_is_read_again(
    vestry: Vestry, conn: psycopg.Connection[Any], root: psycopg.Connection[Any]
) -> None:
    for _ in range(2):
        vestry.enqueue(conn, HELLO, owner="alice", privacy="private")
        conn.commit()
    root.execute("DELETE FROM vestry.owner_keys")
    with pytest.raises(UnknownKey):
        vestry.enqueue(conn, HELLO, owner="alice", privacy="private")
    conn.rollback()
    vestry.enqueue(conn, HELLO, owner="alice", privacy="private")
    conn.commit()


def test_without_a_key_ring_only_shareable_jobs_are_enqueued(
    clean: DevStack,
    conn: psycopg.Connection[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("VESTRY_KEYRING_FILE", raising=False)
    with Vestry(clean.database_url("vestry_producer")) as client:
        client.enqueue(conn, HELLO, owner="alice", privacy="shareable")
        with pytest.raises(SettingsError, match="key ring"):
            client.enqueue(conn, HELLO, owner="alice", privacy="private")
        conn.commit()


def call_function(conn: psycopg.Connection[Any], **changed: Any) -> None:
    arguments: dict[str, Any] = {
        "p_owner": "alice", "p_privacy": "private", "p_latency": "bulk", "p_tasks": None,
        "p_quality": "adequate", "p_tier": None, "p_run_at": None, "p_deadline": None,
        "p_max_attempts": None, "p_ids": [uuid4()], "p_kinds": ["embedding"], "p_pools": ["gpu"],
        "p_models": None, "p_costs": [1], "p_keep_payload": [True], "p_result_ttl_s": [60],
        "p_key_hashes": None, "p_content_hashes": None, "p_key_id": None, "p_sealed": None,
        "p_texts": None, "p_doc_jobs": None, "p_doc_ordinals": None, "p_doc_sources": None,
        "p_doc_hashes": None,
    } | changed  # fmt: skip
    call = ", ".join(f"{name} => %({name})s" for name in arguments)
    conn.execute(f"SELECT * FROM vestry.enqueue_jobs_v1({call})", arguments)  # type: ignore[call-overload]


def test_database_refuses_an_unsealed_private_payload(
    vestry: Vestry,
    conn: psycopg.Connection[Any],
    root: psycopg.Connection[Any],
) -> None:
    for owner in ("alice", "bob"):
        vestry.enqueue(conn, HELLO, owner=owner, privacy="private")
    conn.commit()
    keys = dict(root.execute("SELECT owner, key_id FROM vestry.owner_keys").fetchall())
    alice, bob = keys["alice"], keys["bob"]
    head = b"\x01" + alice.bytes
    sealed = head + bytes(40)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"p_texts": ["in the clear"]}, "VY002"),
        ({"p_sealed": [None], "p_key_id": alice}, "VY002"),
        ({"p_sealed": [b'{"texts":["' + bytes(60)], "p_key_id": alice}, "VY002"),
        ({"p_sealed": [head + b"too short"], "p_key_id": alice}, "VY002"),
        ({"p_sealed": [b"\x02" + sealed[1:]], "p_key_id": alice}, "VY002"),
        ({"p_sealed": [sealed]}, "VY002"),
        ({"p_sealed": [sealed], "p_key_id": uuid4()}, "VY002"),
        ({"p_sealed": [b"\x01" + bob.bytes + bytes(40)], "p_key_id": bob}, "VY002"),
        ({"p_sealed": [sealed], "p_key_id": alice, "p_texts": ["and clear"]}, "VY002"),
        ({"p_sealed": [sealed, sealed], "p_key_id": alice}, "VY002"),
        ({"p_sealed": [sealed], "p_key_id": alice, "p_privacy": "shareable"}, "VY003"),
        ({"p_sealed": [sealed], "p_key_id": alice, "p_privacy": None}, "VY003"),
        ({"p_sealed": [sealed], "p_key_id": alice, "p_pools": ["cloud"]}, "VY003"),
    ]
    for changed, sqlstate in refused:
        with pytest.raises(psycopg.Error) as caught, conn.transaction():
            call_function(conn, **changed)
        assert caught.value.sqlstate == sqlstate, changed
    call_function(conn, p_sealed=[sealed], p_key_id=alice)
    conn.commit()
    assert count(root, "jobs") == 3


def test_forgotten_owner_is_refused(
    vestry: Vestry, conn: psycopg.Connection[Any], root: psycopg.Connection[Any]
) -> None:
    root.execute("INSERT INTO vestry.owners (owner, forgotten_at) VALUES ('gone', now())")
    for privacy in ("private", "shareable"):
        with pytest.raises(OwnerForgotten):
            vestry.enqueue(conn, HELLO, owner="gone", privacy=privacy)
        conn.rollback()
