"""Documents, their chunks and vectors: read before an attempt, written in its finishing transaction.

The fence is the generation: enqueue and delete advance it, and an effect for an older one is refused
while the row is locked. Lock order: after jobs, by owner, source and external hash, as in the SQL
functions.
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

from models.content import Content
from models.sql import QUERIES
from vestry.crypto.envelope import CHUNK, DETAIL
from vestry.db.operations import column, uuid7

Connection = psycopg.Connection[Any]


@dataclass(frozen=True, slots=True)
class DocumentState:
    """Current state of a job's document; see the columns of `*_documents`.

    Attributes:
        generation: the generation that the job was enqueued for.
        current: False if a later generation exists: the embedding would be discarded.
        indexed_hash: content hash of the stored chunks; None if there are none.
        indexed_space: their embedding space.
    """

    document_id: UUID
    generation: int
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
    """Content to store for one document. `chunks` None: the stored chunks are confirmed as current."""

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
    """Query the documents of jobs, in the order of their payloads; see `payloads.read_payloads`.

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

    def fetch() -> dict[UUID, list[DocumentState]]:
        states: dict[UUID, list[DocumentState]] = {}
        for job_id, *columns in rows:
            states.setdefault(job_id, []).append(DocumentState(*columns))
        return states

    return fetch


def lock_current(
    conn: Connection, privacy: str, generations: Iterable[tuple[UUID, int]]
) -> frozenset[tuple[UUID, int]]:
    """Lock documents in order; returns those of the (document, generation) pairs that are current."""
    pairs = frozenset(generations)
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
    """Replace the chunks and vectors of locked, current documents.

    Args:
        conn: the finishing transaction, in which row security names the owners.
        content: storage of the privacy class.
        writes: one per document; one with `chunks` None only advances indexed_generation.
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
    rows = [(w, chunk, uuid7()) for w in writes for chunk in w.chunks or ()]
    if not rows:
        return
    texts = [
        None if chunk.text is None else content.encode(w.owner, CHUNK, chunk_id, chunk.text)
        for w, chunk, chunk_id in rows
    ]
    conn.execute(
        _of(content.privacy, QUERIES["insert_chunks"], sealed=content.sealed),
        {
            "id": column(chunk_id for _, _, chunk_id in rows),
            "document_id": column(w.document_id for w, _, _ in rows),
            "owner": column(w.owner for w, _, _ in rows),
            "ordinal": column(chunk.ordinal for _, chunk, _ in rows),
            "start_char": column(chunk.start for _, chunk, _ in rows),
            "end_char": column(chunk.end for _, chunk, _ in rows),
            "content_hash": column(chunk.content_hash for _, chunk, _ in rows),
            "key_id": column(content.key_id(w.owner) for w, _, _ in rows),
            "text": column(texts),
            "space_id": column(w.space_id for w, _, _ in rows),
            "source": column(w.source for w, _, _ in rows),
            "vector": column(chunk.vector for _, chunk, _ in rows),
        },
        prepare=True,
    )


@cache
def _of(privacy: str, query: LiteralString, *, sealed: bool = False) -> bytes:
    """A statement on the tables of one privacy class."""
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
