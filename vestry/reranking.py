"""A search's second look: its hits in the order in which a reranker puts their passages. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from vestry.hits import Hit
from vestry.rerank import Rerank
from vestry.rerank_results import RerankResult
from vestry.search import RERANK_MOST

PATIENCE_S: Final = 10.0
"""Longest that a search waits for a reranker, in seconds: it has its hits already."""

FELL_BACK: Final = "reranked_by_fallback"
TOO_SLOW: Final = "reranker_too_slow"
FAILED: Final = "reranker_failed"


def readable(hits: Sequence[Hit]) -> list[int]:
    """Places of the hits that a reranker can read: the nearest, as far as their text was kept."""
    return [place for place, hit in enumerate(hits) if hit.text and hit.text.strip()][:RERANK_MOST]


def rerank_job(query: str, hits: Sequence[Hit], places: Sequence[int]) -> Rerank:
    """The job that ranks hits and keeps nothing of them."""
    passages = [text for place in places if (text := hits[place].text)]
    return Rerank(query, passages, keep_text=False)


def reordered(hits: Sequence[Hit], places: Sequence[int], body: Mapping[str, Any]) -> list[Hit]:
    """The hits with the reranker's scores, best first; behind them, as they were, those it left.

    Args:
        hits: nearest first.
        places: of those that it read, in the job's order.
        body: of the job's result.

    Raises:
        ValueError: it is not a ranking of these.
    """
    ranking = RerankResult.from_json(body).ranking
    if sorted(one.index for one in ranking) != list(range(len(places))):
        raise ValueError("not a ranking of these passages")
    ranked = [replace(hits[places[one.index]], rerank_score=one.score) for one in ranking]
    unread = set(range(len(hits))).difference(places)
    return ranked + [hits[place] for place in sorted(unread)]
