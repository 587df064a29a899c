"""Erasure of an owner: everything is deleted, and concurrent transactions store nothing again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg
import pytest

from models import claims, transitions
from models.claims import Lease, LeasePolicy
from tests.producer_helpers import HELLO, count, succeed
from tests.waiting import eventually
from vestry import Document, Embedding, KeyRing, OwnerForgotten, Unavailable, Vestry
from vestry.admin.erasure import backups_until, forget
from vestry.errors import UnknownKey, UnknownOwner
from workers.stack.dev_stack import DevStack

CONTENT = [f"{p}_{t}" for p in ("private", "shareable")
           for t in ("payloads", "results", "blobs", "documents", "chunks", "embeddings")]  # fmt: skip
DOCUMENTS = Embedding(documents=[Document("one", id="1"), Document("two", id="2")], source="notes")


@dataclass(frozen=True)
class Site:
    """A producer and an operator on the shared servers."""

    stack: DevStack
    vestry: Vestry
    conn: psycopg.Connection[Any]
    operator: psycopg.Connection[Any]
    root: psycopg.Connection[Any]


@pytest.fixture
def site(clean: DevStack) -> Iterator[Site]:
    urls = [clean.database_url(f"vestry_{role}") for role in ("producer", "operator")]
    with ExitStack() as resources:
        vestry = resources.enter_context(Vestry(urls[0], clean.keyring))
        conns = [
            resources.enter_context(psycopg.connect(url, autocommit=True))
            for url in (*urls, clean.superuser_url)
        ]
        yield Site(clean, vestry, *conns)


def fill(site: Site, owner: str) -> dict[str, UUID]:
    """Store rows in each table, in both privacy classes. Returns the jobs by name."""
    ring, jobs = KeyRing.load(site.stack.keyring), {}
    site.root.execute(
        "SELECT vestry.ensure_space_v1('s.1', 'm', 'r', 3, '', '', true, 'fp32', 'test')"
    )
    for privacy in ("private", "shareable"):
        common: Any = {"owner": owner, "privacy": privacy}
        jobs[f"{privacy} queued"] = site.vestry.enqueue(
            site.conn, HELLO, idempotency_key="k", **common
        ).id
        jobs[f"{privacy} indexing"] = site.vestry.enqueue(site.conn, DOCUMENTS, **common).id
        done = jobs[f"{privacy} done"] = site.vestry.enqueue(site.conn, HELLO, **common).id
        succeed(site.root, ring, done, {"vectors": [[1, 2, 3]], "space": "s.1"})
        key = site.root.execute("SELECT key_id FROM vestry.owner_keys WHERE owner = %s", [owner])
        sealed = (key.fetchone()[0], b"\x01sealed") if privacy == "private" else ("a file",)
        columns = "key_id, body" if privacy == "private" else "body"
        site.root.execute(
            f"""INSERT INTO vestry.{privacy}_blobs (job_id, name, part, owner, {columns})
                VALUES (%s, 'f', 0, %s, {", ".join(["%s"] * len(sealed))})""",
            [done, owner, *sealed],
        )
        site.root.execute(
            f"""WITH c AS (
                  INSERT INTO vestry.{privacy}_chunks (id, document_id, owner, ordinal, start_char,
                    end_char, content_hash{", key_id" if privacy == "private" else ""})
                  SELECT gen_random_uuid(), id, owner, 0, 0, 3, 'h'
                    {", gen_random_uuid()" if privacy == "private" else ""}
                  FROM vestry.{privacy}_documents WHERE owner = %s RETURNING id, owner)
                INSERT INTO vestry.{privacy}_embeddings (chunk_id, space_id, owner, source, vector)
                SELECT c.id, s.id, c.owner, 'notes', '[1,2,3]' FROM c, vestry.spaces s""",
            [owner],
        )
    return jobs


def rows_of(root: Any, owner: str) -> dict[str, int]:
    tables = [*CONTENT, "owner_keys", "idempotency_keys"]
    counts = {
        table: root.execute(
            f"SELECT count(*) FROM vestry.{table} WHERE owner = %s", [owner]
        ).fetchone()[0]
        for table in tables
    }
    return {table: number for table, number in counts.items() if number}


def claim(conn: psycopg.Connection[Any], privacy: str) -> Lease:
    policy = LeasePolicy(worker="w", privacy=privacy, lease_s=60, max_run_s=60)
    lease = claims.claim(conn, policy, f"{privacy}.bulk.gpu", ["embedding"])
    conn.commit()
    assert lease is not None
    return lease


def test_erasure_deletes_all_of_the_owner_and_nothing_of_others(site: Site) -> None:
    jobs = fill(site, "ann")
    fill(site, "bob")
    before = rows_of(site.root, "bob")
    assert set(before) == {*CONTENT, "owner_keys", "idempotency_keys"}
    done = forget(site.operator, "ann")
    assert rows_of(site.root, "ann") == {}
    assert rows_of(site.root, "bob") == before
    assert done.gone == {
        "keys": 1, "documents": 4, "chunks": 4, "vectors": 4, "payloads": 4, "results": 2,
        "files": 2, "idempotency_keys": 2,
    }  # fmt: skip
    assert (done.cancelled, done.kept_jobs) == (4, 6)
    states = {name: site.vestry.status(job).state for name, job in jobs.items()}
    assert {s for name, s in states.items() if "done" not in name} == {"cancelled"}
    assert {s for name, s in states.items() if "done" in name} == {"succeeded"}


def test_nothing_is_enqueued_for_a_forgotten_owner(site: Site) -> None:
    fill(site, "ann")
    forget(site.operator, "ann")
    with Vestry(site.stack.database_url("vestry_producer"), site.stack.keyring) as late:
        for client in (site.vestry, late):
            for privacy in ("private", "shareable"):
                # The database refuses a payload sealed with a cached key.
                with pytest.raises((OwnerForgotten, UnknownKey)):
                    client.enqueue(site.conn, HELLO, owner="ann", privacy=privacy)
        with pytest.raises(OwnerForgotten):
            late.search("what", owner="ann", privacy="private")
    assert rows_of(site.root, "ann") == {}
    again = forget(site.operator, "ann")
    assert not any(again.gone.values())


def test_unknown_owner_cannot_be_forgotten(site: Site) -> None:
    with pytest.raises(UnknownOwner):
        forget(site.operator, "stranger")
    assert count(site.root, "owners") == 0


@pytest.mark.parametrize("privacy", ["private", "shareable"])
def test_running_attempt_cannot_finish_after_the_tombstone(site: Site, privacy: str) -> None:
    """The tombstone suffices, before any job is cancelled; other owners' jobs of the batch finish."""
    for owner in ("ann", "bob"):
        site.vestry.enqueue(site.conn, HELLO, owner=owner, privacy=privacy)
    with psycopg.connect(site.stack.database_url(f"vestry_{privacy}")) as worker:
        lease = claim(worker, privacy)
        assert len(lease.jobs) == 2
        site.operator.execute("SELECT vestry.forget_owner_v1('ann')")
        ids, owners = [job.id for job in lease.jobs], {job.owner for job in lease.jobs}
        held = transitions.lock_held(worker, lease.id, ids, owners=owners)
        assert held == {job.id for job in lease.jobs if job.owner == "bob"}


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_erasure_waits_for_a_producers_open_transaction(site: Site, level: str) -> None:
    site.vestry.enqueue(site.conn, HELLO, owner="ann", privacy="private")
    with psycopg.connect(site.stack.database_url("vestry_producer")) as slow:
        slow.execute(f"SET TRANSACTION ISOLATION LEVEL {level}")
        site.vestry.enqueue(slow, HELLO, owner="ann", privacy="private")
        if level == "READ COMMITTED":
            with pytest.raises(Unavailable):
                forget(site.operator, "ann", timeout_s=0.1)
            # New transactions are refused by then, and erasure does not wait for them.
            with pytest.raises((OwnerForgotten, UnknownKey)):
                site.vestry.enqueue(site.conn, HELLO, owner="ann", privacy="private")
        forgetting = threading.Thread(target=forget, args=(site.operator, "ann"))
        forgetting.start()
        eventually(lambda: is_waiting(site.root))
        slow.commit()
    forgetting.join()
    assert rows_of(site.root, "ann") == {}
    assert site.root.execute("SELECT DISTINCT state FROM vestry.jobs").fetchall() == [
        ("cancelled",)
    ]


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_transaction_with_an_old_snapshot_stores_nothing(site: Site, level: str) -> None:
    """The transaction cannot see the tombstone, and erasure does not wait for one without writes."""
    job = site.vestry.enqueue(site.conn, HELLO, owner="ann", privacy="shareable")
    store = "SELECT vestry.store_blobs_v1('ann', 'shareable', NULL, ARRAY[%s], '{f}', '{0}', '{x}')"
    with psycopg.connect(site.stack.database_url("vestry_producer")) as old:
        old.execute(f"SET TRANSACTION ISOLATION LEVEL {level}")
        old.execute("SELECT count(*) FROM vestry.jobs")
        forget(site.operator, "ann")
        with pytest.raises(psycopg.errors.SerializationFailure), old.transaction():
            old.execute(store, [job.id])
        with pytest.raises(Exception, match="40001"):
            site.vestry.enqueue(old, HELLO, owner="ann", privacy="shareable")
    assert rows_of(site.root, "ann") == {}


def is_waiting(root: Any) -> bool:
    row = root.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone()
    return bool(row[0])


def test_backup_expiry_is_derived_from_the_retention(site: Site) -> None:
    site.vestry.enqueue(site.conn, HELLO, owner="ann", privacy="shareable")
    done = forget(site.operator, "ann")
    assert backups_until(None, done.forgotten_at) is None
    until = backups_until(30, done.forgotten_at)
    assert until is not None
    assert (until - done.forgotten_at).days == 30
