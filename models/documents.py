"""Documents, their chunks and vectors: read before an attempt, written in its finishing transaction.

The fence is the generation: enqueue and delete advance it, and an effect made for an older one is
refused while the row is locked. Lock order: after jobs, by owner, source and external hash, as the
SQL functions lock them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql

from models.columns import column
from models.content import Content
from vestry.ids import uuid7
from vestry.sealing import CHUNK, DETAIL

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
        sql.SQL(
            """SELECT jd.job_id, jd.document_id, jd.generation,
                      coalesce(d.generation = jd.generation AND NOT d.deleted, false),
                      d.indexed_hash, s.name
               FROM vestry.job_documents jd
               LEFT JOIN {} d ON d.id = jd.document_id
               LEFT JOIN vestry.spaces s ON s.id = d.indexed_space
               WHERE jd.job_id = ANY (%b) ORDER BY jd.job_id, jd.ordinal"""
        ).format(_table(privacy, "documents")),
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


def lock_standing(
    conn: Connection, privacy: str, wanted: Iterable[tuple[UUID, int]]
) -> frozenset[tuple[UUID, int]]:
    """Lock documents in order; of the (document, generation) pairs wanted, those that stand."""
    pairs = frozenset(wanted)
    if not pairs:
        return frozenset()
    rows = conn.execute(
        sql.SQL(
            """SELECT id, generation FROM {} WHERE id = ANY (%s) AND NOT deleted
               ORDER BY owner, source, external_hash FOR UPDATE"""
        ).format(_table(privacy, "documents")),
        [list({document_id for document_id, _ in pairs})],
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
    privacy = content.privacy
    fresh = [w for w in writes if w.chunks is not None]
    conn.execute(
        sql.SQL("DELETE FROM {} WHERE document_id = ANY (%s)").format(_table(privacy, "chunks")),
        [[w.document_id for w in fresh]],
    )
    _insert_chunks(conn, content, fresh)
    for write in fresh:
        detail = json.dumps(write.detail, ensure_ascii=False, separators=(",", ":"))
        values = {
            "indexed_hash": write.content_hash,
            "indexed_space": write.space_id,
            "detail": content.encode(write.owner, DETAIL, write.document_id, detail),
        }
        if content.sealed:
            values["key_id"] = content.key_id(write.owner)
        _update(conn, privacy, write, values)
    confirmed = [w for w in writes if w.chunks is None]
    if confirmed:
        conn.execute(
            sql.SQL(
                """UPDATE {} SET indexed_generation = generation, updated_at = vestry.clock()
                   WHERE id = ANY (%s)"""
            ).format(_table(privacy, "documents")),
            [[w.document_id for w in confirmed]],
        )


def _update(
    conn: Connection, privacy: str, write: DocumentWrite, values: Mapping[str, Any]
) -> None:
    columns = sql.SQL(", ").join(
        sql.SQL("{} = {}").format(sql.Identifier(name), sql.Placeholder(name)) for name in values
    )
    conn.execute(
        sql.SQL(
            """UPDATE {} SET indexed_generation = generation, updated_at = vestry.clock(), {}
               WHERE id = %(id)s"""
        ).format(_table(privacy, "documents"), columns),
        {**values, "id": write.document_id},
    )


def _insert_chunks(conn: Connection, content: Content, writes: Sequence[DocumentWrite]) -> None:
    pieces = [(w, chunk, uuid7()) for w in writes for chunk in w.chunks or ()]
    if not pieces:
        return
    texts = [
        None if chunk.text is None else content.encode(w.owner, CHUNK, chunk_id, chunk.text)
        for w, chunk, chunk_id in pieces
    ]
    key_column = sql.SQL(", key_id") if content.sealed else sql.SQL("")
    key_value = sql.SQL(", u.key_id") if content.sealed else sql.SQL("")
    text_type = sql.SQL("bytea[]") if content.sealed else sql.SQL("text[]")
    conn.execute(
        sql.SQL(
            """WITH u AS MATERIALIZED (
                 SELECT * FROM unnest(%b::uuid[], %b::uuid[], %b::text[], %b::int[], %b::int[],
                                      %b::int[], %b::bytea[], %b::uuid[], %b::{text_type},
                                      %b::int[], %b::text[], %b::text[])
                   x(id, document_id, owner, ordinal, start_char, end_char, content_hash, key_id,
                     text, space_id, source, vector)),
               stored AS (
                 INSERT INTO {chunks} (id, document_id, owner, ordinal, start_char, end_char,
                                       content_hash, text{key_column})
                 SELECT u.id, u.document_id, u.owner, u.ordinal, u.start_char, u.end_char,
                        u.content_hash, u.text{key_value} FROM u)
               INSERT INTO {embeddings} (chunk_id, space_id, owner, source, vector)
               SELECT u.id, u.space_id, u.owner, u.source, u.vector::halfvec FROM u"""
        ).format(
            text_type=text_type,
            key_column=key_column,
            key_value=key_value,
            chunks=_table(content.privacy, "chunks"),
            embeddings=_table(content.privacy, "embeddings"),
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
    )


def _table(privacy: str, name: str) -> sql.Identifier:
    return sql.Identifier("vestry", f"{privacy}_{name}")
