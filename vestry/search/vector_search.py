"""Nearest passages among an owner's documents and shareable sources. No I/O.

Correct first. Private vectors are always compared one by one. A selection of shareable ones is
counted, and compared one by one too unless it is large: an approximate index filtered down to few
rows gives up early and answers wrongly without saying so.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal
from uuid import UUID

from psycopg import sql

from vestry.crypto.envelope import CHUNK, DETAIL
from vestry.crypto.owner_keys import OwnerKeys
from vestry.db.row_security import owners_setting
from vestry.errors import InvalidInput, UnknownSpace
from vestry.jobs.base import JobOptions, privacy_name
from vestry.jobs.embedding import Embedding
from vestry.jobs.results import JobStatus
from vestry.lanes import Latency, Privacy
from vestry.operations import Operation, Query, Row
from vestry.search.hits import Hit, Hits
from vestry.validation import check_label, check_source, check_text

EXACT_ROWS: Final = 20_000
"""A selection up to this size is always compared row by row (some 20 ms at 384 dimensions)."""
EXACT_FILTERED_ROWS: Final = 200_000
"""One that is less than half of its space is compared row by row up to this size."""
LIMIT_MAX: Final = 1000
RERANK_DEEPER: Final = 3
"""How many times the hits asked for are found for a reranker: one from further down may rise."""
RERANK_LEAST: Final = 20
RERANK_MOST: Final = 100
"""Passages that it reads at most: a small cross-encoder on two cores reads some twenty a second."""
QUERY_RESULT_TTL_S: Final = 60
"""Seconds until a query's vector is pruned, should the asker not live to delete it."""

_CHUNKS_A_HIT: Final = 4
_EF_SEARCH: Final = 200
_EF_SEARCH_MAX: Final = 1000  # pgvector's own bound
_SPACE: Final = "SELECT id, dimension FROM vestry.spaces WHERE name = %s"
# An embedding model reranks by similarity: it would say once more what the comparison has said.
_RERANKER: Final = """SELECT 1 FROM vestry.routes r
  WHERE r.kind = 'rerank' AND r.task = '' AND r.tier = '' AND r.quality = 'adequate'
    AND r.latency = 'interactive' AND r.privacy = %s
    AND NOT EXISTS (SELECT FROM vestry.routes e WHERE e.kind = 'embedding' AND e.model = r.model)
    AND NOT EXISTS (SELECT FROM vestry.spaces s WHERE s.model = r.model)"""
_MODEL: Final = "SELECT model FROM vestry.spaces WHERE name = %s"
_CONTEXT: Final = f"""SELECT {owners_setting("ARRAY[%s::text]")},
  set_config('hnsw.iterative_scan', 'strict_order', true),
  set_config('hnsw.max_scan_tuples', '200000', true),
  set_config('hnsw.ef_search', %s::text, true)"""

_COUNT: Final = sql.SQL("""SELECT count(*) FROM (
  SELECT FROM vestry.shareable_embeddings e
  WHERE space_id = {space} AND {chosen} LIMIT {most}) t""")
_SPACE_ROWS: Final = sql.SQL("SELECT reltuples::bigint FROM pg_class WHERE oid = {part}::regclass")
_COLUMNS: Final = sql.SQL("""
SELECT n.chunk_id, c.document_id, d.owner, n.source, n.distance, c.text, d.detail,
       c.start_char, c.end_char
FROM near n JOIN vestry.{chunks} c ON c.id = n.chunk_id
JOIN vestry.{documents} d ON d.id = c.document_id AND NOT d.deleted
ORDER BY n.distance""")
# No ORDER BY beside the vectors: that alone would let the planner take the approximate index.
_EXACT: Final = sql.SQL("""WITH compared AS MATERIALIZED (
  SELECT chunk_id, source, vector OPERATOR(public.<=>) %s::public.halfvec AS distance
  FROM vestry.{embeddings} e WHERE space_id = {space} AND {chosen}),
near AS (SELECT * FROM compared WHERE distance <> 'NaN' ORDER BY distance LIMIT {most})""")
# The index is on this very expression, in the partition of this very space.
_NEAREST: Final = sql.SQL("""WITH near AS MATERIALIZED (
  SELECT chunk_id, source,
    (vector::public.halfvec({dim})) OPERATOR(public.<=>) %s::public.halfvec({dim}) AS distance
  FROM vestry.{embeddings} e WHERE space_id = {space} AND {chosen}
  ORDER BY distance LIMIT {most})""")


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """What is searched; see `Vestry.search`. Validated when made."""

    owner: str
    privacy: str
    sources: Sequence[str] | None = None
    own_sources: Sequence[str] | None = None
    limit: int = 10

    def __post_init__(self) -> None:
        check_label("owner", self.owner)
        object.__setattr__(self, "privacy", privacy_name(self.privacy))
        if not isinstance(self.limit, int) or not 1 <= self.limit <= LIMIT_MAX:
            raise InvalidInput("limit", f"must be 1 to {LIMIT_MAX}")
        for name in ("sources", "own_sources"):
            named = getattr(self, name)
            if named is None:
                continue
            if isinstance(named, (str, bytes)):
                raise InvalidInput(name, "is not a list of sources")
            for source in named:
                check_source(source)
            object.__setattr__(self, name, list(named))


def check_query(query: str) -> None:
    """Raise `InvalidInput` for what no query can be."""
    check_text("query", query)


def query_job(query: str, model: str | None) -> Embedding:
    """The job that embeds a query and keeps nothing of it."""
    return Embedding(texts=[query], input="query", model=model, keep_text=False)


def query_options(request: SearchRequest) -> JobOptions:
    """As private as what is searched, at once, and its result gone soon."""
    return JobOptions(
        owner=request.owner,
        privacy=request.privacy,
        latency=Latency.INTERACTIVE.value,
        result_ttl_s=QUERY_RESULT_TTL_S,
    )


def model_of(space: str | None) -> Operation[str | None]:
    """The model to embed a query with for a named space; None for the workers' own choice."""
    if space is None:
        return None
    rows = yield Query(_MODEL, (space,))
    if not rows:
        raise UnknownSpace
    return str(rows[0][0])


class Stopwatch:
    """Where the time of one search goes."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._answered = self._began

    def answered(self) -> None:
        """The query's vector is here."""
        self._answered = time.monotonic()

    def note(self, hits: Hits, query: JobStatus) -> Hits:
        """Tell the hits, found just now, how long it took."""
        hits.database_s = time.monotonic() - self._answered
        hits.embedding_s = self._answered - self._began
        if query.started_at is not None:
            hits.queue_s = (query.started_at - query.created_at).total_seconds()
        return hits


def vector_of(body: Mapping[str, Any], space: str | None) -> tuple[list[float], str]:
    """The query's vector and space, from the job's result."""
    embedded_in = str(body["space"])
    if space is not None and embedded_in != space:
        raise UnknownSpace("no worker embeds queries for that space")
    return [float(number) for number in body["vectors"][0]], embedded_in


def nearest(
    request: SearchRequest,
    vector: Sequence[float],
    space: str,
    keys: OwnerKeys,
    *,
    rerank: bool | None = False,
) -> Operation[Hits]:
    """The nearest documents to a vector of a space; in a transaction.

    Args:
        request: what is searched.
        vector: as many finite numbers as the space has dimensions.
        space: its name.
        keys: open private hits.
        rerank: the hits are to be reranked, and more of them found for it; None where the published
            routes lead to a reranker. `to_rerank` of the hits says which it was.

    Raises:
        UnknownSpace: there is no such space.
        InvalidInput: the vector is not of it.
    """
    rows = yield Query(_SPACE, (space,))
    if not rows:
        raise UnknownSpace
    space_id, dimension = rows[0]
    if len(vector) != dimension or not all(math.isfinite(number) for number in vector):
        raise InvalidInput("vector", f"must be {dimension} finite numbers")
    near = _Query(space_id, dimension, json.dumps(list(vector), separators=(",", ":")))
    if rerank is None:
        rerank = bool((yield Query(_RERANKER, (request.privacy,))))
    if rerank:
        request = replace(request, limit=_depth(request.limit))
    ef_search = min(max(_EF_SEARCH, request.limit * _CHUNKS_A_HIT), _EF_SEARCH_MAX)
    yield Query(_CONTEXT, (request.owner, str(ef_search)))

    found: dict[UUID, tuple[str, Row]] = {}
    for part in _selections(request):
        for row in (yield from near.chunks(part, request.limit)):
            best = found.get(row[1])
            if best is None or row[4] < best[1][4]:
                found[row[1]] = (part.privacy, row)
    chosen = sorted(found.values(), key=lambda pair: pair[1][4])[: request.limit]
    hits = []
    for privacy, row in chosen:
        hits.append((yield from _hit(privacy, row, keys)))
    nearest_first = Hits(hits, space)
    nearest_first.to_rerank = rerank
    return nearest_first


def _depth(limit: int) -> int:
    """How many hits to find for a reranker where `limit` are asked for."""
    return max(limit, min(max(RERANK_LEAST, RERANK_DEEPER * limit), RERANK_MOST))


@dataclass(frozen=True, slots=True)
class _Selection:
    """Rows of one table by one condition with its parameters."""

    privacy: Literal["private", "shareable"]
    condition: sql.SQL
    params: tuple[Any, ...]


def _selections(request: SearchRequest) -> list[_Selection]:
    own = sql.SQL("owner = %s")
    params: tuple[Any, ...] = (request.owner,)
    if request.own_sources is not None:
        own, params = sql.SQL("owner = %s AND source = ANY (%s)"), (*params, request.own_sources)
    parts = [_Selection("shareable", own, params)]
    if request.privacy == Privacy.PRIVATE.value:
        parts.append(_Selection("private", own, params))
    if request.sources:
        parts.append(
            _Selection("shareable", sql.SQL("source = ANY (%s)"), (list(request.sources),))
        )
    return parts


@dataclass(frozen=True, slots=True)
class _Query:
    """A vector, as pgvector reads it, and its space."""

    space_id: int
    dimension: int
    vector: str

    def chunks(self, part: _Selection, limit: int) -> Operation[list[Row]]:
        """Nearest chunks, as many as it takes to have `limit` documents, or all there are."""
        exact = True
        if part.privacy == "shareable":
            selected = yield from self._count(part)
            if selected == 0:
                return []
            exact = yield from self._worth_exact(selected)
        most = max(40, limit * _CHUNKS_A_HIT)
        while True:
            rows = yield self._compare(part, exact=exact, most=most)
            if not exact and len(rows) < most:
                # The approximate search gave up: it is known that there is more.
                exact = True
            elif len(rows) < most or len({row[1] for row in rows}) >= limit:
                return rows
            else:
                most *= 4

    def _count(self, part: _Selection) -> Operation[int]:
        """Rows of a selection, counted no further than it matters."""
        count = _COUNT.format(
            space=sql.Literal(self.space_id),
            chosen=part.condition,
            most=sql.Literal(EXACT_FILTERED_ROWS + 1),
        )
        rows = yield Query(count, part.params)
        return int(rows[0][0])

    def _worth_exact(self, selected: int) -> Operation[bool]:
        if not EXACT_ROWS < selected <= EXACT_FILTERED_ROWS:
            return selected <= EXACT_ROWS
        name = f"vestry.shareable_embeddings_s{self.space_id}"
        rows = yield Query(_SPACE_ROWS.format(part=sql.Literal(name)))
        return selected < int(rows[0][0]) / 2

    def _compare(self, part: _Selection, *, exact: bool, most: int) -> Query:
        near = (_EXACT if exact else _NEAREST).format(
            embeddings=sql.Identifier(f"{part.privacy}_embeddings"),
            space=sql.Literal(self.space_id),
            dim=sql.Literal(self.dimension),
            chosen=part.condition,
            most=sql.Literal(most),
        )
        columns = _COLUMNS.format(
            chunks=sql.Identifier(f"{part.privacy}_chunks"),
            documents=sql.Identifier(f"{part.privacy}_documents"),
        )
        # Never prepared: a plan for any owner would not know how many rows this one has.
        return Query(near + columns, (self.vector, *part.params), prepare=False)


def _hit(privacy: str, row: Row, keys: OwnerKeys) -> Operation[Hit]:
    chunk_id, document_id, owner, source, distance, text, detail, start, end = row
    if privacy == Privacy.PRIVATE.value:
        key = yield from keys.require(owner)
        text = None if text is None else key.open(CHUNK, chunk_id, text).decode()
        detail = None if detail is None else key.open(DETAIL, document_id, detail)
    told = json.loads(detail) if detail else {}
    return Hit(
        owner=owner,
        source=source,
        document=str(told.get("id") or ""),
        date=told.get("date"),
        score=1.0 - float(distance),
        text=text,
        metadata=told.get("metadata"),
        start=start,
        end=end,
    )
