"""The course of a search, written once for both clients as a generator that does no I/O itself.

It yields what is to be done next: steps on a connection, or a job to be asked; and is sent what came of
it, or has its error raised inside.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from vestry.crypto.owner_keys import OwnerKeys
from vestry.db import job_queries
from vestry.errors import SEARCH_TIMEOUT, UnknownOwner, VestryError, WaitTimeout
from vestry.jobs.base import JobOptions, JobRequest
from vestry.jobs.rerank import Rerank, RerankResult
from vestry.jobs.results import JobStatus
from vestry.operations import Operation
from vestry.search.hits import Hit, Hits
from vestry.search.vector_search import (
    RERANK_MOST,
    SearchRequest,
    Stopwatch,
    check_query,
    model_of,
    nearest,
    query_job,
    query_options,
    vector_of,
)

# A search's second look: its hits in the order in which a reranker puts their passages. No I/O.

RERANK_TIMEOUT_S: Final = 10.0
"""Longest that a search waits for a reranker, in seconds: it has its hits already."""

FELL_BACK: Final = "reranked_by_fallback"
TOO_SLOW: Final = "reranker_too_slow"
FAILED: Final = "reranker_failed"


def rerankable(hits: Sequence[Hit]) -> list[int]:
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


EMBEDDED_BY_FALLBACK: Final = "query_embedded_by_fallback"


@dataclass(frozen=True, slots=True)
class Do:
    """Carry out steps; the answer is what they return."""

    steps: Callable[[], Operation[Any]]
    atomic: bool = False


@dataclass(frozen=True, slots=True)
class Ask:
    """Enqueue a job, wait, and take its result away; the answer is its status and its result.

    Whoever gives up on it withdraws it: nobody else will read the answer, and neither question nor
    answer is to outlive the search.
    """

    job: JobRequest
    options: JobOptions
    timeout: float


Course = Generator[Do | Ask, Any, Hits]


@dataclass(frozen=True, slots=True)
class Search:
    """A search with all that was said of it; see `Vestry.search`."""

    query: str
    request: SearchRequest
    space: str | None
    timeout: float
    known_owner: bool
    rerank: bool | None

    def course(self, keys: OwnerKeys) -> Course:
        """What a client does, in order; returns the hits.

        Args:
            keys: open private hits.
        """
        watch, end = Stopwatch(), time.monotonic() + self.timeout
        request = self.request
        model = yield Do(lambda: model_of(self.space))
        check_query(self.query)
        if self.known_owner:
            known = yield Do(lambda: job_queries.has_documents(request.owner), atomic=True)
            if not known:
                raise UnknownOwner
        job = query_job(self.query, model)
        told, body = yield from _ask(Ask(job, query_options(request), self.timeout))
        watch.answered()
        vector, space = vector_of(body, self.space)
        hits: Hits = yield Do(
            lambda: nearest(request, vector, space, keys, rerank=self.rerank), atomic=True
        )
        watch.note(hits, told)
        if told.degraded:
            hits.degrade(EMBEDDED_BY_FALLBACK)
        places = rerankable(hits) if hits.to_rerank else []
        if places:
            hits = yield from self._reranked(hits, places, end)
        return hits.first(request.limit)

    def _reranked(self, hits: Hits, places: list[int], end: float) -> Course:
        """The hits as a reranker orders them, or as they are where it does not."""
        began = time.monotonic()
        patience = min(end - began, RERANK_TIMEOUT_S)
        if patience <= 0:
            return hits.degrade(TOO_SLOW)
        job = rerank_job(self.query, hits, places)
        try:
            told, body = yield Ask(job, query_options(self.request), patience)
            ranked = hits.ordered(reordered(hits, places, body))
            if told.degraded:
                ranked.degrade(FELL_BACK)
        except WaitTimeout:
            ranked = hits.degrade(TOO_SLOW)
        except (VestryError, LookupError, TypeError, ValueError):
            ranked = hits.degrade(FAILED)
        ranked.rerank_s = time.monotonic() - began
        return ranked


def _ask(ask: Ask) -> Generator[Do | Ask, Any, tuple[JobStatus, dict[str, Any]]]:
    try:
        told, body = yield ask
    except WaitTimeout:
        raise WaitTimeout(SEARCH_TIMEOUT) from None
    return told, body


def follow(course: Course, carry_out: Callable[[Do | Ask], Any]) -> Hits:
    """Go through a search, with a client's way to carry things out."""
    try:
        wanted = next(course)
        while True:
            try:
                came = carry_out(wanted)
            except VestryError as error:
                wanted = course.throw(error)
            else:
                wanted = course.send(came)
    except StopIteration as end:
        hits: Hits = end.value
        return hits


async def follow_async(course: Course, carry_out: Callable[[Do | Ask], Awaitable[Any]]) -> Hits:
    """`follow`, with an asynchronous client."""
    try:
        wanted = next(course)
        while True:
            try:
                came = await carry_out(wanted)
            except VestryError as error:
                wanted = course.throw(error)
            else:
                wanted = course.send(came)
    except StopIteration as end:
        hits: Hits = end.value
        return hits
