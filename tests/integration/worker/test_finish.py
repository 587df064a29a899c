"""Finish: fencing of effects, and deletion of payloads and texts that are not kept."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import psycopg
import pytest

from models import claims, documents
from models.claims import LeasePolicy
from models.content import PrivateContent, ShareableContent
from tasks.protocol import Chunk, Failed, IndexDocument, Succeeded
from vestry import Document, Embedding, KeyRing, Vestry
from workers.execution.finish import write_outcomes
from workers.stack.dev_stack import DevStack


def test_effects_of_an_older_generation_or_a_deleted_document_are_refused(
    clean: DevStack, vestry: Vestry, conn: Any, admin: Any
) -> None:
    def index(name: str) -> UUID:
        job = Embedding(documents=[Document(name, name)], source="s")
        return vestry.enqueue(conn, job, owner="ann", privacy="shareable").id

    for name in ("stays", "changes", "goes"):
        index(name)
    rows = admin.execute(
        "SELECT document_id, generation FROM vestry.job_documents ORDER BY job_id"
    ).fetchall()
    index("changes")
    admin.execute(
        "UPDATE vestry.shareable_documents SET deleted = true WHERE id = %s", [rows[2][0]]
    )
    with psycopg.connect(clean.database_url("vestry_shareable")) as worker:
        assert documents.lock_current(worker, "shareable", rows) == {rows[0]}
    # Deleting through the SQL contract raises the generation too.
    vestry.delete_documents(conn, owner="ann", privacy="shareable", source="s", ids=["stays"])
    (after,) = admin.execute(
        "SELECT generation FROM vestry.shareable_documents WHERE id = %s", [rows[0][0]]
    ).fetchone()
    assert after == rows[0][1] + 1


@pytest.mark.parametrize("keep_text", [True, False])
def test_success_deletes_the_payload_and_texts_that_are_not_kept(
    clean: DevStack, vestry: Vestry, conn: Any, admin: Any, keep_text: bool
) -> None:
    entry = Embedding(documents=[Document("the text", "x")], source="s", keep_text=keep_text)
    (space,) = admin.execute(
        "SELECT vestry.ensure_space_v1('s', 'm', 'r', 1, '', '', true, 'float32', 'test')"
    ).fetchone()
    for privacy in ("private", "shareable"):
        job = vestry.enqueue(conn, entry, owner="ann", privacy=privacy).id
        content = PrivateContent(KeyRing.load(clean.keyring)) if privacy == "private" else (
            ShareableContent()
        )  # fmt: skip
        (document, generation) = admin.execute(
            "SELECT document_id, generation FROM vestry.job_documents WHERE job_id = %s", [job]
        ).fetchone()
        chunk = Chunk(0, 0, 8, "the text", [1.0])
        effect = IndexDocument(document, generation, "s", space, b"", {}, [chunk], keep_text)
        count = {"documents": 1, "embedded": 1, "unchanged": 0, "superseded": 0, "chunks": 1}
        with psycopg.connect(clean.database_url(f"vestry_{privacy}")) as worker:
            policy = LeasePolicy("test", privacy, 60, 600)
            lease = claims.claim(worker, policy, f"{privacy}.bulk.gpu", ["embedding"])
            assert lease is not None
            finished = write_outcomes(
                worker, content, lease, {job: Succeeded(count, (effect,))}, backoff_cap_s=1
            )
        assert finished.states == {job: "succeeded"}
        (texts,) = admin.execute(f"SELECT count(text) FROM vestry.{privacy}_chunks").fetchone()
        (vectors,) = admin.execute(f"SELECT count(*) FROM vestry.{privacy}_embeddings").fetchone()
        (payloads,) = admin.execute(f"SELECT count(*) FROM vestry.{privacy}_payloads").fetchone()
        assert (texts, vectors) == (int(keep_text), 1)
        assert payloads == int(keep_text and privacy == "shareable")


@pytest.mark.parametrize(
    ("outcome", "latency", "payloads"),
    [
        (Failed("x", "x", retryable=True), "bulk", 1),
        (Failed("x", "x"), "bulk", 1),
        (Failed("x", "x"), "interactive", 0),
    ],
)
def test_failure_deletes_the_payload_of_a_dead_interactive_job_alone(  # noqa: PLR0917 - pytest's, by name
    clean: DevStack, vestry: Vestry, conn: Any, admin: Any, outcome: Failed, latency: str,
    payloads: int,
) -> None:  # fmt: skip
    query = Embedding(texts=["x"], keep_text=False)
    job = vestry.enqueue(conn, query, owner="ann", privacy="private", latency=latency).id
    with psycopg.connect(clean.database_url("vestry_private")) as worker:
        policy = LeasePolicy("test", "private", 60, 600)
        lease = claims.claim(worker, policy, f"private.{latency}.gpu", ["embedding"])
        assert lease is not None
        content = PrivateContent(KeyRing.load(clean.keyring))
        write_outcomes(worker, content, lease, {job: outcome}, backoff_cap_s=1)
    assert admin.execute("SELECT count(*) FROM vestry.private_payloads").fetchone() == (payloads,)
