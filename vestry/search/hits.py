"""The result of a search."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, overload


@dataclass(frozen=True, slots=True)
class Hit:
    """One document and its best passage.

    Attributes:
        owner: owner of the document.
        source: its collection.
        document: its id, as it was indexed.
        date: as it was indexed.
        score: cosine similarity of passage and query, 1 for the same direction.
        text: the passage; None if the text was not kept.
        metadata: as it was indexed.
        start: offset of the passage in the document, in characters.
        end: offset of its end.
        rerank_score: the reranker's score, on its own scale; None if it did not read the passage.
    """

    owner: str
    source: str
    document: str
    date: str | None
    score: float
    text: str | None = field(repr=False)
    metadata: dict[str, Any] | None = field(default=None, repr=False)
    start: int = 0
    end: int = 0
    rerank_score: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Hits(Sequence[Hit]):
    """A read-only sequence of hits, nearest first; best first if a reranker ordered them.

    Equal to other `Hits`, or a list or tuple, with the same hits in the same order; the attributes
    below are not compared. Unhashable, as a list.

    Attributes:
        space: name of the embedding space that was searched.
        reason: why the search is degraded, such as `reranker_too_slow`; None if it is not.
        reranked: a reranker ordered the hits.
        queue_s: seconds that the query waited for a worker; 0 if none was involved.
        embedding_s: seconds until the query was embedded, `queue_s` included.
        database_s: seconds that the comparison took, measured by the client.
        rerank_s: seconds spent on the reranker.
    """

    hits: tuple[Hit, ...]
    space: str
    reason: str | None = None
    reranked: bool = False
    queue_s: float = 0.0
    embedding_s: float = 0.0
    database_s: float = 0.0
    rerank_s: float = 0.0

    @overload
    def __getitem__(self, index: int) -> Hit: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Hit, ...]: ...
    def __getitem__(self, index: int | slice) -> Hit | tuple[Hit, ...]:
        return self.hits[index]

    def __len__(self) -> int:
        return len(self.hits)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Hits):
            return self.hits == other.hits
        if isinstance(other, (list, tuple)):
            return self.hits == tuple(other)
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    @property
    def degraded(self) -> bool:
        """Whether a part of the search failed, or was served by a fallback."""
        return self.reason is not None

    def degrade(self, reason: str) -> Hits:
        """These hits with a reason; the first reason stays."""
        return replace(self, reason=self.reason or reason)
