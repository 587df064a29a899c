"""Steps of a search outside the database: its jobs, and the use of their results.

No I/O: the clients run the jobs and the operations, in the order of `Vestry.search`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from vestry.errors import UnknownSpace
from vestry.jobs.base import JobOptions
from vestry.jobs.embedding import Embedding
from vestry.jobs.rerank import Rerank, RerankResult
from vestry.jobs.results import JobStatus
from vestry.lanes import Latency
from vestry.search.hits import Hit, Hits
from vestry.search.vector_search import RERANK_MAX, SearchRequest

RERANK_TIMEOUT_S: Final = 10.0
"""Longest wait for a reranker, in seconds: the search has its hits already."""
RESULT_TTL_S: Final = 60
"""Seconds until the results of a search's jobs are pruned if the client does not delete them."""

EMBEDDED_BY_FALLBACK: Final = "query_embedded_by_fallback"
RERANKED_BY_FALLBACK: Final = "reranked_by_fallback"
RERANKER_TOO_SLOW: Final = "reranker_too_slow"
RERANKER_FAILED: Final = "reranker_failed"


def job_options(request: SearchRequest) -> JobOptions:
    """Options of a search's jobs: the privacy of the search, interactive, a short-lived result."""
    return JobOptions(
        owner=request.owner,
        privacy=request.privacy,
        latency=Latency.INTERACTIVE.value,
        result_ttl_s=RESULT_TTL_S,
    )


def embedding_job(query: str, model: str | None) -> Embedding:
    """The job that embeds the query; its text is not kept."""
    return Embedding(texts=[query], input="query", model=model, keep_text=False)


def query_vector(body: Mapping[str, Any], space: str | None) -> tuple[list[float], str]:
    """The query's vector and its space, from the result of the embedding job.

    Raises:
        UnknownSpace: the workers embed queries for another space than the one requested.
    """
    embedded_in = str(body["space"])
    if space is not None and embedded_in != space:
        raise UnknownSpace("No worker embeds queries for that space; enable its embedding model.")
    return [float(number) for number in body["vectors"][0]], embedded_in


def with_times(hits: Hits, status: JobStatus, *, embedding_s: float, database_s: float) -> Hits:
    """Hits with the times of the search, degraded if the query was embedded by another model."""
    queue_s = 0.0
    if status.started_at is not None:
        queue_s = (status.started_at - status.created_at).total_seconds()
    hits = replace(hits, queue_s=queue_s, embedding_s=embedding_s, database_s=database_s)
    return hits.degrade(EMBEDDED_BY_FALLBACK) if status.degraded else hits


def readable(hits: Sequence[Hit]) -> list[int]:
    """Positions of the hits that a reranker can read: the nearest ones whose text was kept."""
    return [index for index, hit in enumerate(hits) if hit.text and hit.text.strip()][:RERANK_MAX]


def rerank_job(query: str, hits: Sequence[Hit], positions: Sequence[int]) -> Rerank:
    """The job that ranks the hits at these positions; their text is not kept."""
    passages = [text for index in positions if (text := hits[index].text)]
    return Rerank(query, passages, keep_text=False)


def reranked(
    hits: Hits, positions: Sequence[int], status: JobStatus, body: Mapping[str, Any]
) -> Hits:
    """Hits in the reranker's order, followed by those that it did not read, in their order.

    Args:
        hits: nearest first.
        positions: of the hits that it read, in the job's order.
        status: of the job.
        body: its result.

    Raises:
        ValueError: the result is not a ranking of these passages.
    """
    ranking = RerankResult.from_json(body).ranking
    if sorted(entry.index for entry in ranking) != list(range(len(positions))):
        raise ValueError("not a ranking of these passages")
    ranked = [replace(hits[positions[entry.index]], rerank_score=entry.score) for entry in ranking]
    unread = set(range(len(hits))).difference(positions)
    ordered = (*ranked, *(hits[index] for index in sorted(unread)))
    hits = replace(hits, hits=ordered, reranked=True)
    return hits.degrade(RERANKED_BY_FALLBACK) if status.degraded else hits
