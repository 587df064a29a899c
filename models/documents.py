"""Documents, their chunks and vectors: read before an attempt, written in its finishing transaction.

The fence is the generation: enqueue and delete advance it, and an effect made for an older one is
refused while the row is locked. Lock order: after jobs, by owner, source and external hash, as the
SQL functions lock them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, LiteralString
from uuid import UUID

import psycopg
from psycopg import sql

from models.arrays import column
from models.content import Content
from vestry.crypto.envelope import CHUNK, DETAIL
from vestry.db.operations import uuid7

Connection = psycopg.Connection[Any]


@dataclass(frozen=True, slots=True)
class DocumentState:
    """A job's document as it stands: see the columns of `*_documents`."""

    document_id: UUID
    generation: int
    """The generation the job was enqueued for."""
    current: bool
    indexed_hash: bytes | None
    indexed_space: str | None


@dataclass(frozen=True, slots=True)
class ChunkRow:
    """A chunk to store. `text` None keeps vector and offsets only; `vector` is a pgvector literal."""

    ordinal: int
    start: int
    end: int
    content_hash: bytes
    text: str | None
    vector: str


@dataclass(frozen=True, slots=True)
class DocumentWrite:
    """What an attempt wants to store for one document; `chunks` None only confirms what is there."""

    document_id: UUID
    generation: int
    owner: str
    source: str = ""
    space_id: int = 0
    content_hash: bytes = b""
    detail: Mapping[str, Any] | None = None
    chunks: Sequence[ChunkRow] | None = None


def read_states(
    conn: Connection, privacy: str, job_ids: Sequence[UUID]
) -> Callable[[], dict[UUID, list[DocumentState]]]:
    """Ask for the documents of jobs, in the order of their payloads, as `payloads.read_payloads`.

    Row security must name the owners.
    """
    rows = conn.execute(
        _of(
            privacy,
            """SELECT jd.job_id, jd.document_id, jd.generation,
                      coalesce(d.generation = jd.generation AND NOT d.deleted, false),
                      d.indexed_hash, s.name
               FROM vestry.job_documents jd
               LEFT JOIN {documents} d ON d.id = jd.document_id
               LEFT JOIN vestry.spaces s ON s.id = d.indexed_space
               WHERE jd.job_id = ANY (%b) ORDER BY jd.job_id, jd.ordinal""",
        ),
        [column(job_ids)],
        prepare=True,
        binary=True,
    )

    def take() -> dict[UUID, list[DocumentState]]:
        found: dict[UUID, list[DocumentState]] = {}
        for job_id, *rest in rows:
            found.setdefault(job_id, []).append(DocumentState(*rest))
        return found

    return take


def lock_current(
    conn: Connection, privacy: str, wanted: Iterable[tuple[UUID, int]]
) -> frozenset[tuple[UUID, int]]:
    """Lock documents in order; of the (document, generation) pairs wanted, those that stand."""
    pairs = frozenset(wanted)
    if not pairs:
        return frozenset()
    rows = conn.execute(
        _of(
            privacy,
            """SELECT id, generation FROM {documents} WHERE id = ANY (%b) AND NOT deleted
               ORDER BY owner, source, external_hash FOR UPDATE""",
        ),
        [column({document_id for document_id, _ in pairs})],
        prepare=True,
        binary=True,
    )
    return pairs & frozenset((row[0], row[1]) for row in rows)


def store(conn: Connection, content: Content, writes: Sequence[DocumentWrite]) -> None:
    """Replace the chunks and vectors of locked, standing documents.

    Args:
        conn: the finishing transaction, with the owners named.
        content: how this privacy class stores content.
        writes: one a document; those with `chunks` None only move indexed_generation on.
    """
    if not writes:
        return
    fresh = [w for w in writes if w.chunks is not None]
    if fresh:
        conn.execute(
            _of(content.privacy, "DELETE FROM {chunks} WHERE document_id = ANY (%b)"),
            [column(w.document_id for w in fresh)],
            prepare=True,
        )
        _insert_chunks(conn, content, fresh)
        _update(conn, content, fresh)
    confirmed = [w.document_id for w in writes if w.chunks is None]
    if confirmed:
        conn.execute(
            _of(
                content.privacy,
                """UPDATE {documents} SET indexed_generation = generation,
                          updated_at = vestry.clock()
                   WHERE id = ANY (%b)""",
            ),
            [column(confirmed)],
            prepare=True,
        )


def _update(conn: Connection, content: Content, writes: Sequence[DocumentWrite]) -> None:
    details = [
        content.encode(
            w.owner,
            DETAIL,
            w.document_id,
            json.dumps(w.detail, ensure_ascii=False, separators=(",", ":")),
        )
        for w in writes
    ]
    conn.execute(
        _of(
            content.privacy,
            """UPDATE {documents} d
               SET indexed_generation = d.generation, updated_at = vestry.clock(),
                   indexed_hash = u.hash, indexed_space = u.space_id, detail = u.detail{set_key}
               FROM unnest(%b::uuid[], %b::bytea[], %b::int[], %b::{content}[], %b::uuid[])
                 u(id, hash, space_id, detail, key_id)
               WHERE d.id = u.id""",
            sealed=content.sealed,
        ),
        [
            column(w.document_id for w in writes),
            column(w.content_hash for w in writes),
            column(w.space_id for w in writes),
            column(details),
            column(content.key_id(w.owner) for w in writes),
        ],
        prepare=True,
    )


def _insert_chunks(conn: Connection, content: Content, writes: Sequence[DocumentWrite]) -> None:
    pieces = [(w, chunk, uuid7()) for w in writes for chunk in w.chunks or ()]
    if not pieces:
        return
    texts = [
        None if chunk.text is None else content.encode(w.owner, CHUNK, chunk_id, chunk.text)
        for w, chunk, chunk_id in pieces
    ]
    conn.execute(
        _of(
            content.privacy,
            """WITH u AS MATERIALIZED (
                 SELECT * FROM unnest(%b::uuid[], %b::uuid[], %b::text[], %b::int[], %b::int[],
                                      %b::int[], %b::bytea[], %b::uuid[], %b::{content}[],
                                      %b::int[], %b::text[], %b::text[])
                   x(id, document_id, owner, ordinal, start_char, end_char, content_hash, key_id,
                     text, space_id, source, vector)),
               stored AS (
                 INSERT INTO {chunks} (id, document_id, owner, ordinal, start_char, end_char,
                                       content_hash, text{key_column})
                 SELECT u.id, u.document_id, u.owner, u.ordinal, u.start_char, u.end_char,
                        u.content_hash, u.text{key_value} FROM u)
               INSERT INTO {embeddings} (chunk_id, space_id, owner, source, vector)
               SELECT u.id, u.space_id, u.owner, u.source, u.vector::halfvec FROM u""",
            sealed=content.sealed,
        ),
        [
            column(chunk_id for _, _, chunk_id in pieces),
            column(w.document_id for w, _, _ in pieces),
            column(w.owner for w, _, _ in pieces),
            column(chunk.ordinal for _, chunk, _ in pieces),
            column(chunk.start for _, chunk, _ in pieces),
            column(chunk.end for _, chunk, _ in pieces),
            column(chunk.content_hash for _, chunk, _ in pieces),
            column(content.key_id(w.owner) for w, _, _ in pieces),
            column(texts),
            column(w.space_id for w, _, _ in pieces),
            column(w.source for w, _, _ in pieces),
            column(chunk.vector for _, chunk, _ in pieces),
        ],
        prepare=True,
    )


@cache
def _of(privacy: str, query: LiteralString, *, sealed: bool = False) -> bytes:
    """A statement on one privacy class's tables; the same text is made once."""
    tables = {
        name: sql.Identifier("vestry", f"{privacy}_{name}")
        for name in ("documents", "chunks", "embeddings")
    }
    parts = {
        "content": sql.SQL("bytea" if sealed else "text"),
        "set_key": sql.SQL(", key_id = u.key_id" if sealed else ""),
        "key_column": sql.SQL(", key_id" if sealed else ""),
        "key_value": sql.SQL(", u.key_id" if sealed else ""),
    }
    return sql.SQL(query).format(**tables, **parts).as_bytes()
