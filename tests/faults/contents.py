"""Check the stored documents at the end: each has its latest committed text, or nothing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import numpy as np
import psycopg

from inference.backends.echo import EchoModel

SAME: Final = 0.999
"""Cosine of a text's vector with itself in half precision; that with other texts is lower."""
_STORED: Final = """
SELECT d.id::text, d.deleted, c.n, c.vectors FROM (
  SELECT id, deleted FROM vestry.private_documents
  UNION ALL SELECT id, deleted FROM vestry.shareable_documents) d
LEFT JOIN (
  SELECT k.document_id, count(*) AS n, array_agg(e.vector::text) AS vectors
  FROM (SELECT id, document_id FROM vestry.private_chunks
        UNION ALL SELECT id, document_id FROM vestry.shareable_chunks) k
  LEFT JOIN (SELECT chunk_id, vector FROM vestry.private_embeddings
             UNION ALL SELECT chunk_id, vector FROM vestry.shareable_embeddings) e ON e.chunk_id = k.id
  GROUP BY k.document_id) c ON c.document_id = d.id"""


def check(
    conn: psycopg.Connection[Any],
    violation: Callable[[str, object], None],
    counts: Counter[str],
    lines: Iterable[dict[str, Any]],
    job_documents: Mapping[tuple[str, int], str],
) -> None:
    """Compare every document with the last version that its producer committed.

    Args:
        conn: of a superuser.
        violation: called with the kind and the subject of a violation.
        counts: counts the documents that were compared.
        lines: the producers' history.
        job_documents: (job, position in it) to the document's id.
    """
    expected = _expected_texts(lines, job_documents)
    model = EchoModel()
    for document, deleted, chunks, vectors in conn.execute(_STORED):
        if document not in expected:
            continue
        text = expected[document]
        counts["documents compared"] += 1
        if text is None:
            if not deleted or chunks:
                violation("a deleted document is still stored", document)
            continue
        stored = [np.array(json.loads(vector)) for vector in vectors or () if vector is not None]
        if len(stored) != 1 or chunks != 1:
            violation("a document is not stored once", document)
        elif float(stored[0] @ model.embed([text])[0]) < SAME:
            violation("a document's stored vector is not of its latest text", document)


def _expected_texts(
    lines: Iterable[dict[str, Any]], job_documents: Mapping[tuple[str, int], str]
) -> dict[str, str | None]:
    """Document to its latest text, None if deleted; without those whose COMMIT result is unknown."""
    names: dict[tuple[str, str, str], str] = {}
    latest: dict[tuple[str, str, str], str | None] = {}
    uncertain: set[tuple[str, str, str]] = set()
    for line in lines:
        texts: dict[str, str | None] = dict(
            line.get("texts") or dict.fromkeys(line.get("gone", ()))
        )
        for position, (name, text) in enumerate(texts.items()):
            key = (line["owner"], line["privacy"], name)
            if line["what"] == "unknown":
                uncertain.add(key)
                continue
            latest[key] = text
            if line["jobs"]:
                names[key] = job_documents.get((line["jobs"][0], position), "")
    return {
        names[key]: text for key, text in latest.items() if key not in uncertain and names.get(key)
    }
