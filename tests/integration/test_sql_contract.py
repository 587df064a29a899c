"""The SQL functions with invalid arguments, and concurrent with a worker."""

from __future__ import annotations

import threading
from typing import Any
from uuid import UUID

import psycopg
import pytest

from models import documents
from models.content import ShareableContent
from models.documents import ChunkRow, DocumentWrite
from tests.waiting import eventually
from vestry.db.operations import uuid7
from workers.stack.dev_stack import DevStack

SPACE = "SELECT vestry.ensure_space_v1('s', 'm', 'r', 3, '', '', true, 'fp32', 'test')"
DEFAULTS: dict[str, Any] = {
    "kinds": ["embedding"] * 2, "pools": ["gpu"] * 2, "models": [None] * 2, "cost": [1] * 2,
    "keep": [True] * 2, "ttl": [60] * 2, "texts": ["{}"] * 2, "keys": None, "contents": None,
}  # fmt: skip


def enqueue(conn: Any, **changed: Any) -> list[Any]:
    ids = [uuid7(), uuid7()]
    rows: list[Any] = conn.execute(
        """SELECT * FROM vestry.enqueue_jobs_v1(
             'ann', 'shareable', 'bulk', p_ids => %(ids)s::uuid[], p_kinds => %(kinds)s::text[],
             p_pools => %(pools)s::text[], p_models => %(models)s::text[], p_costs => %(cost)s::int[],
             p_keep_payload => %(keep)s::bool[], p_result_ttl_s => %(ttl)s::int[],
             p_key_hashes => %(keys)s::bytea[], p_content_hashes => %(contents)s::bytea[],
             p_texts => %(texts)s::text[])""",
        DEFAULTS | {"ids": ids} | changed,
    ).fetchall()
    return rows


def document_enqueue(conn: Any, hashes: list[bytes]) -> UUID:
    job = uuid7()
    conn.execute(
        """SELECT * FROM vestry.enqueue_jobs_v1(
             'ann', 'shareable', 'bulk', p_ids => ARRAY[%(job)s::uuid], p_kinds => '{embedding}',
             p_pools => '{gpu}', p_costs => '{1}', p_keep_payload => '{t}', p_result_ttl_s => '{60}',
             p_texts => '{x}', p_doc_jobs => %(ones)s::int[], p_doc_ordinals => %(ordinals)s::int[],
             p_doc_sources => %(sources)s::text[], p_doc_hashes => %(hashes)s::bytea[])""",
        {
            "job": job, "ones": [1] * len(hashes), "ordinals": list(range(len(hashes))),
            "sources": ["diary"] * len(hashes), "hashes": hashes,
        },
    )  # fmt: skip
    return job


@pytest.mark.parametrize(
    "changed",
    [
        {"pools": ["gpu"]}, {"pools": ["gpu", ""]}, {"pools": ["gpu", "cpu"]},
        {"kinds": ["embedding", "haruspicy"]}, {"kinds": ["embedding", "ocr"]},
        {"cost": [1, 0]}, {"ttl": [60, -1]}, {"texts": ["{}"]}, {"keep": [True, None]},
        {"keys": [b"a"], "contents": [b"b"]}, {"keys": [b"a", b"b"]}, {"models": [None] * 3},
    ],
)  # fmt: skip
def test_enqueue_refuses_arrays_that_do_not_match(
    producer: psycopg.Connection[Any], changed: dict[str, Any]
) -> None:
    with pytest.raises(psycopg.Error) as refused:
        enqueue(producer, **changed)
    assert refused.value.sqlstate == "VY003"
    row = producer.execute("SELECT count(*) FROM vestry.jobs").fetchone()
    assert row == (0,)
    assert [row[2] for row in enqueue(producer)] == ["created", "created"]


def test_document_deleted_while_its_chunks_are_stored_has_none(
    clean: DevStack, producer: psycopg.Connection[Any], worker: psycopg.Connection[Any]
) -> None:
    space = worker.execute(SPACE).fetchone()
    assert space is not None
    document_enqueue(producer, [b"d"])
    document = producer.execute("SELECT id, generation FROM vestry.shareable_documents").fetchone()
    assert document is not None
    chunk = ChunkRow(0, 0, 6, b"hash", "secret", "[1,0,0]")
    write = DocumentWrite(*document, "ann", "diary", space[0], b"h", {"id": "d"}, [chunk])
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
        assert documents.lock_current(worker, "shareable", [document]) == {document}
        thread.start()
        with psycopg.connect(clean.superuser_url, autocommit=True) as admin:
            waiting = "SELECT FROM pg_locks WHERE NOT granted"
            eventually(lambda: bool(admin.execute(waiting).fetchall()))
        documents.store(worker, ShareableContent(), [write])
    thread.join(10)
    assert deleted == [(1,)]
    counts = producer.execute(
        """SELECT (SELECT count(*) FROM vestry.shareable_chunks),
                  (SELECT count(*) FROM vestry.shareable_embeddings)"""
    ).fetchone()
    assert counts == (0, 0)


def test_finish_and_enqueue_lock_documents_in_one_order(
    clean: DevStack, producer: psycopg.Connection[Any], worker: psycopg.Connection[Any]
) -> None:
    # Ids ascend while hashes descend.
    hashes = [bytes([255 - n]) for n in range(40)]
    for one in hashes:
        document_enqueue(producer, [one])
    rows = producer.execute("SELECT id, generation FROM vestry.shareable_documents").fetchall()
    errors: list[str] = []

    def enqueue_repeatedly() -> None:
        with psycopg.connect(clean.database_url("vestry_producer"), autocommit=True) as other:
            for _ in range(30):
                try:
                    document_enqueue(other, hashes)
                except psycopg.Error as error:
                    errors.append(str(error.sqlstate))

    thread = threading.Thread(target=enqueue_repeatedly)
    thread.start()
    while thread.is_alive():
        try:
            with worker.transaction():
                documents.lock_current(worker, "shareable", rows)
        except psycopg.Error as error:
            errors.append(str(error.sqlstate))
    thread.join()
    assert errors == []
