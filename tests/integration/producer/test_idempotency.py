"""The same idempotency key: the same job, or a clear error."""

from __future__ import annotations

import threading
from typing import Any

import psycopg
import pytest

from tests.producer_helpers import HELLO, count
from vestry import (
    Document,
    Embedding,
    IdempotencyConflict,
    Vestry,
)
from workers.stack.dev_stack import DevStack


@pytest.mark.parametrize("privacy", ["private", "shareable"])
def test_repeated_key_and_content_return_the_same_job(
    vestry: Vestry,
    conn: psycopg.Connection[Any],
    root: psycopg.Connection[Any],
    privacy: str,
) -> None:
    job = Embedding(documents=[Document("text", "id"), Document("other")], source="diary")
    first = vestry.enqueue(conn, job, owner="alice", privacy=privacy, idempotency_key="k")
    conn.commit()
    again = vestry.enqueue(conn, job, owner="alice", privacy=privacy, idempotency_key="k")
    conn.commit()
    assert (first.created, again.created) == (True, False)
    assert first.id == again.id
    assert count(root, "jobs") == 1
    generations = root.execute(f"SELECT DISTINCT generation FROM vestry.{privacy}_documents")
    assert generations.fetchall() == [(1,)]
    # Each owner and each privacy class has separate keys.
    other = {"private": "shareable", "shareable": "private"}[privacy]
    assert vestry.enqueue(conn, job, owner="bob", privacy=privacy, idempotency_key="k").created
    assert vestry.enqueue(conn, job, owner="alice", privacy=other, idempotency_key="k").created


@pytest.mark.parametrize("privacy", ["private", "shareable"])
def test_repeated_key_with_other_content_conflicts_and_keeps_the_transaction(
    vestry: Vestry,
    conn: psycopg.Connection[Any],
    root: psycopg.Connection[Any],
    privacy: str,
) -> None:
    first = vestry.enqueue(conn, HELLO, owner="alice", privacy=privacy, idempotency_key="k")
    conn.commit()
    different: list[tuple[Embedding, dict[str, Any]]] = [
        (Embedding(texts=["hello!"]), {}),
        (Embedding(texts=["hello"], model="another"), {}),
        (Embedding(texts=["hello"], input="query"), {}),
        (Embedding(texts=["hello"], keep_text=False), {}),
        (HELLO, {"task": "topic"}),
        (HELLO, {"quality": "best"}),
    ]
    for job, options in different:
        with pytest.raises(IdempotencyConflict) as caught:
            vestry.enqueue(
                conn, job, owner="alice", privacy=privacy, idempotency_key="k", **options
            )
        assert caught.value.jobs == (first.id,)
    # One conflict among many jobs: none is enqueued
    with pytest.raises(IdempotencyConflict):
        vestry.enqueue_many(
            conn,
            (Embedding(texts=[f"text {number}"]) for number in range(2500)),
            owner="alice",
            privacy=privacy,
            idempotency_keys=[*(f"k{number}" for number in range(2499)), "k"],
        )
    conn.execute("SELECT 1")
    kept = vestry.enqueue(conn, HELLO, owner="alice", privacy=privacy, idempotency_key="k2")
    conn.commit()
    assert kept.created
    assert count(root, "jobs") == count(root, "idempotency_keys") == 2


def test_transactions_with_the_same_key_create_one_job(
    vestry: Vestry, clean: DevStack, root: psycopg.Connection[Any]
) -> None:
    url = clean.database_url("vestry_producer")
    conn = psycopg.connect(url)
    vestry.enqueue(conn, HELLO, owner="alice", privacy="private")
    conn.commit()
    second: list[Any] = []

    for ending in ("rollback", "commit"):
        # Given a transaction that used the key and is still open
        first = vestry.enqueue(
            conn, HELLO, owner="alice", privacy="private", idempotency_key=f"k{ending}"
        )
        thread = threading.Thread(
            target=lambda ending=ending: second.append(
                enqueue_and_commit(vestry, url, f"k{ending}")
            )
        )
        thread.start()
        thread.join(0.5)
        # Then a second transaction waits for the first
        assert thread.is_alive()
        getattr(conn, ending)()
        thread.join(10)
        # And creates a job if and only if the first is rolled back
        assert second[-1].created is (ending == "rollback")
        assert (second[-1].id == first.id) is (ending == "commit")
    conn.close()
    assert count(root, "jobs") == 3


def enqueue_and_commit(vestry: Vestry, url: str, key: str) -> Any:
    with psycopg.connect(url) as conn:
        return vestry.enqueue(conn, HELLO, owner="alice", privacy="private", idempotency_key=key)
