"""What a search gives back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Hit:
    """One document and its best passage.

    Attributes:
        owner: whose document it is.
        source: its collection.
        document: its id, as it was indexed.
        date: as it was indexed.
        score: cosine similarity of passage and query, 1 for the same direction.
        text: the passage; None where the text was not kept.
        metadata: as it was indexed.
        start: where the passage begins in the document, in characters.
        end: where it ends.
        rerank_score: the reranker's, on its own scale; None where none has read the passage.
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


class Hits(list[Hit]):
    """Hits, nearest first, or best first where a reranker has read them.

    Attributes:
        space: name of the embedding space that was searched.
        reason: what was not done as intended, as a short name such as `reranker_too_slow`.
        reranked: a reranker has ordered them.
        queue_s: seconds the query waited for a worker; 0 where none was asked.
        embedding_s: seconds from asking for the query's vector to having it, the wait included.
        database_s: seconds the comparison took, as seen from here.
        rerank_s: seconds that a reranker was waited for.
        to_rerank: they are more than were asked for, for a reranker to choose among.
    """

    queue_s = 0.0
    embedding_s = 0.0
    database_s = 0.0
    rerank_s = 0.0
    reranked = False
    reason: str | None = None
    to_rerank = False

    def __init__(self, hits: Sequence[Hit], space: str) -> None:
        super().__init__(hits)
        self.space = space

    @property
    def degraded(self) -> bool:
        """Whether not all of it was done as intended."""
        return self.reason is not None

    def degrade(self, reason: str) -> Self:
        """Note that something was not done as intended; the first reason stays."""
        self.reason = self.reason or reason
        return self

    def ordered(self, hits: Sequence[Hit]) -> Self:
        """Take the order that a reranker has given."""
        self[:] = hits
        self.reranked = True
        return self

    def first(self, limit: int) -> Self:
        """Leave only so many."""
        del self[limit:]
        return self
