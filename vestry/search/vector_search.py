"""Nearest passages among an owner's documents and shareable sources. No I/O.

Private vectors are always compared row by row. A selection of shareable ones is counted, and compared
row by row too unless it is large: an approximate index filtered down to few rows stops early and
returns wrong results without an error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal
from uuid import UUID

from psycopg import sql

from vestry.crypto.envelope import CHUNK, DETAIL
from vestry.crypto.owner_keys import OwnerKeys
from vestry.db.operations import Operation, Query, Row, owners_setting
from vestry.errors import InvalidInput, UnknownSpace
from vestry.jobs.base import privacy_name
from vestry.lanes import Privacy
from vestry.search.hits import Hit, Hits
from vestry.validation import check_label, check_source

EXACT_ROWS: Final = 20_000
"""A selection up to this size is always compared row by row (some 20 ms at 384 dimensions)."""
EXACT_FILTERED_ROWS: Final = 200_000
"""A selection of less than half of its space is compared row by row up to this size."""
LIMIT_MAX: Final = 1000
RERANK_DEPTH_FACTOR: Final = 3
"""Hits for a reranker, as a multiple of the limit: it may promote one from beyond the limit."""
RERANK_MIN: Final = 20
RERANK_MAX: Final = 100
"""Most passages for a reranker: a small cross-encoder on two cores reads some twenty a second."""

_CHUNKS_PER_HIT: Final = 4
_EF_SEARCH: Final = 200
_EF_SEARCH_MAX: Final = 1000  # pgvector's own bound
_SPACE: Final = "SELECT id, dimension FROM vestry.spaces WHERE name = %s"
# No embedding models: they rerank by similarity, which would repeat the comparison.
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
  WHERE space_id = {space} AND {chosen} LIMIT {limit}) t""")
_SPACE_ROWS: Final = sql.SQL("SELECT reltuples::bigint FROM pg_class WHERE oid = {part}::regclass")
_COLUMNS: Final = sql.SQL("""
SELECT n.chunk_id, c.document_id, d.owner, n.source, n.distance, c.text, d.detail,
       c.start_char, c.end_char
FROM near n JOIN vestry.{chunks} c ON c.id = n.chunk_id
JOIN vestry.{documents} d ON d.id = c.document_id AND NOT d.deleted
ORDER BY n.distance""")
# No ORDER BY beside the vectors: it would let the planner use the approximate index.
_EXACT: Final = sql.SQL("""WITH compared AS MATERIALIZED (
  SELECT chunk_id, source, vector OPERATOR(public.<=>) %s::public.halfvec AS distance
  FROM vestry.{embeddings} e WHERE space_id = {space} AND {chosen}),
near AS (SELECT * FROM compared WHERE distance <> 'NaN' ORDER BY distance LIMIT {limit})""")
# The index is on exactly this expression, in the partition of this space.
_NEAREST: Final = sql.SQL("""WITH near AS MATERIALIZED (
  SELECT chunk_id, source,
    (vector::public.halfvec({dim})) OPERATOR(public.<=>) %s::public.halfvec({dim}) AS distance
  FROM vestry.{embeddings} e WHERE space_id = {space} AND {chosen}
  ORDER BY distance LIMIT {limit})""")


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """Which documents are searched; see `Vestry.search`. Validated on construction."""

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
            sources = getattr(self, name)
            if sources is None:
                continue
            if isinstance(sources, (str, bytes)):
                raise InvalidInput(name, "must be a list of sources")
            for source in sources:
                check_source(source)
            object.__setattr__(self, name, list(sources))


def embedding_model(space: str) -> Operation[str]:
    """The model that embeds queries for a space.

    Raises:
        UnknownSpace: no space has this name.
    """
    rows = yield Query(_MODEL, (space,))
    if not rows:
        raise UnknownSpace
    return str(rows[0][0])


def candidates(
    request: SearchRequest,
    vector: Sequence[float],
    space: str,
    keys: OwnerKeys,
    *,
    rerank: bool | None,
) -> Operation[tuple[Hits, bool]]:
    """The nearest documents, and whether to rerank them; if so, more of them than the limit.

    Runs in a transaction; raises as `nearest`.

    Args:
        request: which documents are searched.
        vector: as for `nearest`.
        space: its name.
        keys: open private hits.
        rerank: whether to rerank; None if the published routes lead to a reranker.
    """
    if rerank is None:
        rerank = bool((yield Query(_RERANKER, (request.privacy,))))
    if rerank:
        depth = min(max(RERANK_MIN, RERANK_DEPTH_FACTOR * request.limit), RERANK_MAX)
        request = replace(request, limit=max(request.limit, depth))
    return (yield from nearest(request, vector, space, keys)), rerank


def nearest(
    request: SearchRequest, vector: Sequence[float], space: str, keys: OwnerKeys
) -> Operation[Hits]:
    """The nearest documents to a vector of a space; in a transaction.

    Args:
        request: which documents are searched.
        vector: as many finite numbers as the space has dimensions.
        space: its name.
        keys: open private hits.

    Raises:
        UnknownSpace: no space has this name.
        InvalidInput: the vector does not fit the space.
    """
    rows = yield Query(_SPACE, (space,))
    if not rows:
        raise UnknownSpace
    space_id, dimension = rows[0]
    if len(vector) != dimension or not all(math.isfinite(number) for number in vector):
        raise InvalidInput("vector", f"must be {dimension} finite numbers")
    comparison = _Comparison(space_id, dimension, json.dumps(list(vector), separators=(",", ":")))
    ef_search = min(max(_EF_SEARCH, request.limit * _CHUNKS_PER_HIT), _EF_SEARCH_MAX)
    yield Query(_CONTEXT, (request.owner, str(ef_search)))

    best: dict[UUID, tuple[str, Row]] = {}
    for selection in _selections(request):
        for row in (yield from comparison.chunks(selection, request.limit)):
            other = best.get(row[1])
            if other is None or row[4] < other[1][4]:
                best[row[1]] = (selection.privacy, row)
    hits = []
    for privacy, row in sorted(best.values(), key=lambda pair: pair[1][4])[: request.limit]:
        hits.append((yield from _hit(privacy, row, keys)))
    return Hits(tuple(hits), space)


@dataclass(frozen=True, slots=True)
class _Selection:
    """Rows of one privacy class: a condition and its parameters."""

    privacy: Literal["private", "shareable"]
    condition: sql.SQL
    params: tuple[Any, ...]


def _selections(request: SearchRequest) -> list[_Selection]:
    own = sql.SQL("owner = %s")
    params: tuple[Any, ...] = (request.owner,)
    if request.own_sources is not None:
        own, params = sql.SQL("owner = %s AND source = ANY (%s)"), (*params, request.own_sources)
    selections = [_Selection("shareable", own, params)]
    if request.privacy == Privacy.PRIVATE.value:
        selections.append(_Selection("private", own, params))
    if request.sources:
        selections.append(
            _Selection("shareable", sql.SQL("source = ANY (%s)"), (list(request.sources),))
        )
    return selections


@dataclass(frozen=True, slots=True)
class _Comparison:
    """Compares one vector, in pgvector's text form, with those of its space."""

    space_id: int
    dimension: int
    vector: str

    def chunks(self, selection: _Selection, documents: int) -> Operation[list[Row]]:
        """Nearest chunks: of at least so many documents, or of all."""
        exact = True
        if selection.privacy == "shareable":
            selected = yield from self._count(selection)
            if selected == 0:
                return []
            exact = yield from self._is_exact_affordable(selected)
        limit = max(40, documents * _CHUNKS_PER_HIT)
        while True:
            rows = yield self._query(selection, exact=exact, limit=limit)
            if not exact and len(rows) < limit:
                # The approximate search stopped early: by the count there are more rows.
                exact = True
            elif len(rows) < limit or len({row[1] for row in rows}) >= documents:
                return rows
            else:
                limit *= 4

    def _count(self, selection: _Selection) -> Operation[int]:
        """Number of rows of a selection, counted up to EXACT_FILTERED_ROWS + 1."""
        count = _COUNT.format(
            space=sql.Literal(self.space_id),
            chosen=selection.condition,
            limit=sql.Literal(EXACT_FILTERED_ROWS + 1),
        )
        rows = yield Query(count, selection.params)
        return int(rows[0][0])

    def _is_exact_affordable(self, selected: int) -> Operation[bool]:
        if not EXACT_ROWS < selected <= EXACT_FILTERED_ROWS:
            return selected <= EXACT_ROWS
        name = f"vestry.shareable_embeddings_s{self.space_id}"
        rows = yield Query(_SPACE_ROWS.format(part=sql.Literal(name)))
        return selected < int(rows[0][0]) / 2

    def _query(self, selection: _Selection, *, exact: bool, limit: int) -> Query:
        near = (_EXACT if exact else _NEAREST).format(
            embeddings=sql.Identifier(f"{selection.privacy}_embeddings"),
            space=sql.Literal(self.space_id),
            dim=sql.Literal(self.dimension),
            chosen=selection.condition,
            limit=sql.Literal(limit),
        )
        columns = _COLUMNS.format(
            chunks=sql.Identifier(f"{selection.privacy}_chunks"),
            documents=sql.Identifier(f"{selection.privacy}_documents"),
        )
        # Never prepared: a generic plan ignores how many rows this owner has.
        return Query(near + columns, (self.vector, *selection.params), prepare=False)


def _hit(privacy: str, row: Row, keys: OwnerKeys) -> Operation[Hit]:
    chunk_id, document_id, owner, source, distance, text, detail, start, end = row
    if privacy == Privacy.PRIVATE.value:
        key = yield from keys.require(owner)
        text = None if text is None else key.open(CHUNK, chunk_id, text).decode()
        detail = None if detail is None else key.open(DETAIL, document_id, detail)
    described = json.loads(detail) if detail else {}
    return Hit(
        owner=owner,
        source=source,
        document=str(described.get("id") or ""),
        date=described.get("date"),
        score=1.0 - float(distance),
        text=text,
        metadata=described.get("metadata"),
        start=start,
        end=end,
    )
