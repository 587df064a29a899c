"""The SQL functions, called as a careless or hostile producer would, and raced against a worker."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import psycopg
import pytest

from models import documents
from models.content import ShareableContent
from models.documents import ChunkRow, DocumentWrite
from tests.waiting import eventually
from vestry.ids import uuid7
from workers.stack.dev_stack import DevStack

SPACE = "SELECT vestry.ensure_space_v1('s', 'm', 'r', 3, '', '', true, 'fp32', 'test')"
DEFAULTS: dict[str, Any] = {
    "kinds": ["embedding"] * 2, "pools": ["gpu"] * 2, "models": [None] * 2, "units": [1] * 2,
    "keep": [True] * 2, "ttl": [60] * 2, "texts": ["{}"] * 2, "keys": None, "contents": None,
}  # fmt: skip


def enqueue(conn: Any, **changed: Any) -> list[Any]:
    ids = [uuid7(), uuid7()]
    rows: list[Any] = conn.execute(
        """SELECT * FROM vestry.enqueue_jobs_v1(
             'ann', 'shareable', 'bulk', NULL, NULL, NULL, NULL, NULL, NULL,
             %(ids)s::uuid[], %(kinds)s::text[], %(pools)s::text[], %(models)s::text[],
             %(units)s::int[], %(keep)s::bool[], %(ttl)s::int[], %(keys)s::bytea[],
             %(contents)s::bytea[], NULL, NULL, %(texts)s::text[], NULL, NULL, NULL, NULL)""",
        DEFAULTS | {"ids": ids} | changed,
    ).fetchall()
    return rows


def document_enqueue(conn: Any, hashes: list[bytes]) -> UUID:
    job = uuid7()
    conn.execute(
        """SELECT * FROM vestry.enqueue_jobs_v1(
             'ann', 'shareable', 'bulk', NULL, NULL, NULL, NULL, NULL, NULL,
             ARRAY[%(job)s::uuid], '{embedding}', '{gpu}', ARRAY[NULL]::text[], '{1}', '{t}', '{60}',
             NULL, NULL, NULL, NULL, '{x}', %(ones)s::int[], %(places)s::int[], %(sources)s::text[],
             %(hashes)s::bytea[])""",
        {
            "job": job, "ones": [1] * len(hashes), "places": list(range(len(hashes))),
            "sources": ["diary"] * len(hashes), "hashes": hashes,
        },
    )  # fmt: skip
    return job


@pytest.fixture
def producer(clean: DevStack) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(clean.database_url("vestry_producer"), autocommit=True) as conn:
        yield conn


@pytest.fixture
def worker(clean: DevStack) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(clean.database_url("vestry_shareable"), autocommit=True) as conn:
        yield conn


@pytest.mark.parametrize(
    "changed",
    [
        {"pools": ["gpu"]}, {"pools": ["gpu", None]}, {"pools": ["gpu", "cpu"]},
        {"kinds": ["embedding", "haruspicy"]}, {"kinds": ["embedding", "ocr"]},
        {"units": [1, 0]}, {"ttl": [60, -1]}, {"texts": ["{}"]}, {"keep": [True, None]},
        {"keys": [b"a"], "contents": [b"b"]}, {"keys": [b"a", b"b"]}, {"models": [None] * 3},
    ],
)  # fmt: skip
def test_arrays_that_describe_no_jobs_are_refused(
    producer: psycopg.Connection[Any], changed: dict[str, Any]
) -> None:
    with pytest.raises(psycopg.Error) as refused:
        enqueue(producer, **changed)
    assert refused.value.sqlstate == "VY003"
    counted = producer.execute("SELECT count(*) FROM vestry.jobs").fetchone()
    assert counted == (0,)
    assert [row[2] for row in enqueue(producer)] == ["created", "created"]


def test_a_document_deleted_while_its_chunks_are_stored_leaves_none(
    clean: DevStack, producer: psycopg.Connection[Any], worker: psycopg.Connection[Any]
) -> None:
    row = worker.execute(SPACE).fetchone()
    assert row is not None
    document_enqueue(producer, [b"d"])
    found = producer.execute("SELECT id, generation FROM vestry.shareable_documents").fetchone()
    assert found is not None
    chunk = ChunkRow(0, 0, 6, b"hash", "secret", "[1,0,0]")
    write = DocumentWrite(*found, "ann", "diary", row[0], b"h", {"id": "d"}, [chunk])
    deleted: list[Any] = []

    def delete() -> None:
        with psycopg.connect(clean.database_url("vestry_producer"), autocommit=True) as other:
            deleted.extend(
                other.execute(
                    "SELECT vestry.delete_documents_v1('ann', 'shareable', 'diary', ARRAY['d'::bytea])"
                ).fetchall()
            )

    thread = threading.Thread(target=delete)
    with worker.transaction():
        assert documents.lock_current(worker, "shareable", [found]) == {found}
        thread.start()
        with psycopg.connect(clean.superuser_url, autocommit=True) as admin:
            waiting = "SELECT FROM pg_locks WHERE NOT granted"
            eventually(lambda: bool(admin.execute(waiting).fetchall()))
        documents.store(worker, ShareableContent(), [write])
    thread.join(10)
    assert deleted == [(1,)]
    left = producer.execute(
        """SELECT (SELECT count(*) FROM vestry.shareable_chunks),
                  (SELECT count(*) FROM vestry.shareable_embeddings)"""
    ).fetchone()
    assert left == (0, 0)


def test_finishing_and_enqueueing_the_same_documents_lock_in_one_order(
    clean: DevStack, producer: psycopg.Connection[Any], worker: psycopg.Connection[Any]
) -> None:
    # Ids and hashes are made to run in opposite directions.
    hashes = [bytes([255 - n]) for n in range(40)]
    for one in hashes:
        document_enqueue(producer, [one])
    wanted = producer.execute("SELECT id, generation FROM vestry.shareable_documents").fetchall()
    faults: list[str] = []

    def again() -> None:
        with psycopg.connect(clean.database_url("vestry_producer"), autocommit=True) as other:
            for _ in range(30):
                try:
                    document_enqueue(other, hashes)
                except psycopg.Error as error:
                    faults.append(str(error.sqlstate))

    thread = threading.Thread(target=again)
    thread.start()
    while thread.is_alive():
        try:
            with worker.transaction():
                documents.lock_current(worker, "shareable", wanted)
        except psycopg.Error as error:
            faults.append(str(error.sqlstate))
    thread.join()
    assert faults == []
