"""The search pipeline with a reranker: its jobs, their order, and their failures."""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest

from vestry import AsyncVestry, Vestry
from vestry.errors import JobFailed, SealBroken, Unavailable, WaitTimeout
from vestry.jobs.base import JobOptions, JobRequest
from vestry.jobs.embedding import Embedding
from vestry.jobs.rerank import Rerank
from vestry.jobs.results import JobStatus, State
from vestry.search import pipeline
from vestry.search.hits import Hit, Hits
from vestry.search.vector_search import RERANK_MAX

SECRET = "sekrit-token"


def hit(number: int, text: str | None = "text") -> Hit:
    return Hit("ann", "diary", str(number), None, 1 - number / 100, text and f"{text} {number}")


def status(kind: str, *, degraded: bool = False) -> JobStatus:
    now = dt.datetime.now(dt.UTC)
    return JobStatus(
        job=uuid4(), kind=kind, state=State.SUCCEEDED, owner="ann", privacy="private",
        latency="interactive", lane="private.interactive.gpu", attempt=1, degraded=degraded,
        error=None, created_at=now, run_at=now, started_at=now, finished_at=now,
    )  # fmt: skip


@dataclass
class Call:
    job: JobRequest
    options: JobOptions
    timeout: float


class Client(Vestry):
    """A client whose database returns these hits, and whose reranker responds with `ranking`."""

    def __init__(self, hits: list[Hit], ranking: Any, *, to_rerank: bool = True) -> None:
        super().__init__("postgresql://nowhere.invalid/none")
        self.hits = Hits(tuple(hits), "space"), to_rerank
        self.ranking = ranking
        self.calls: list[Call] = []

    def _run(self, operation: Callable[[], Any], *, atomic: bool = False) -> Any:
        del operation
        assert atomic
        return self.hits

    def _run_search_job(self, job: JobRequest, options: JobOptions, timeout: float) -> Any:
        self.calls.append(Call(job, options, timeout))
        if job.kind == "embedding":
            return status("embedding"), {"vectors": [[1.0, 0.0]], "space": "space"}
        if isinstance(self.ranking, BaseException):
            raise self.ranking
        if isinstance(self.ranking, tuple):
            return self.ranking
        rows = [{"index": index, "score": score} for index, score in self.ranking]
        return status("rerank"), {"ranking": rows}


def search(client: Client, *, limit: int = 10, timeout: float = 30.0) -> Hits:
    return client.search("a query", owner="ann", privacy="private", limit=limit, timeout=timeout)


def documents(hits: Hits) -> list[str]:
    return [one.document for one in hits]


def test_hits_are_reordered_then_limited_and_keep_their_similarity() -> None:
    client = Client([hit(n) for n in range(4)], [(3, 9.0), (0, 5.0), (2, 1.0), (1, -4.0)])
    hits = search(client, limit=3)
    assert documents(hits) == ["3", "0", "2"]
    assert [one.rerank_score for one in hits] == [9.0, 5.0, 1.0]
    assert hits[0].score == pytest.approx(0.97)
    assert (hits.reranked, hits.degraded, hits.reason) == (True, False, None)


def test_rerank_job_has_the_privacy_of_the_query_and_keeps_nothing() -> None:
    client = Client([hit(n) for n in range(2)], [(0, 1.0), (1, 0.0)])
    search(client, timeout=5)
    first, second = client.calls
    assert isinstance(first.job, Embedding)
    job = second.job
    assert isinstance(job, Rerank)
    assert (job.query, job.passages, job.keep_text, job.model) == (
        "a query", ("text 0", "text 1"), False, None
    )  # fmt: skip
    options = second.options
    assert (options.owner, options.privacy, options.latency) == ("ann", "private", "interactive")
    assert options.result_ttl_s <= 60
    assert 0 < second.timeout <= 5


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (WaitTimeout(), pipeline.RERANKER_TOO_SLOW),
        (JobFailed("too_long", SECRET), pipeline.RERANKER_FAILED),
        (Unavailable(), pipeline.RERANKER_FAILED),
        (SealBroken(), pipeline.RERANKER_FAILED),
        ([(0, 1.0)], pipeline.RERANKER_FAILED),
        ([(0, 1.0), (7, 0.0)], pipeline.RERANKER_FAILED),
        ([(0, 1.0), (0, 0.0)], pipeline.RERANKER_FAILED),
        ((status("rerank"), {}), pipeline.RERANKER_FAILED),
        ((status("rerank"), {"ranking": [{"index": "x"}]}), pipeline.RERANKER_FAILED),
    ],
)
def test_every_failure_of_the_reranker_degrades_the_hits(response: Any, reason: str) -> None:
    hits = search(Client([hit(0), hit(1)], response), limit=1)
    assert documents(hits) == ["0"]
    assert (hits.degraded, hits.reason, hits.reranked) == (True, reason, False)
    assert hits[0].rerank_score is None


def test_fallback_reranker_degrades_the_search() -> None:
    body = {"ranking": [{"index": 1, "score": 1.0}, {"index": 0, "score": 0.5}]}
    hits = search(Client([hit(0), hit(1)], (status("rerank", degraded=True), body)))
    assert documents(hits) == ["1", "0"]
    assert (hits.degraded, hits.reason, hits.reranked) == (
        True,
        pipeline.RERANKED_BY_FALLBACK,
        True,
    )


def test_hits_without_text_follow_the_reranked_ones() -> None:
    client = Client([hit(0, None), hit(1), hit(2, None), hit(3)], [(1, 2.0), (0, 1.0)])
    hits = search(client)
    assert documents(hits) == ["3", "1", "0", "2"]
    assert [one.rerank_score for one in hits] == [2.0, 1.0, None, None]


def test_number_of_reranked_passages_is_limited() -> None:
    client = Client([hit(n) for n in range(300)], [(n, float(-n)) for n in range(RERANK_MAX)])
    hits = search(client, limit=300)
    job = client.calls[1].job
    assert isinstance(job, Rerank)
    assert len(job.passages) == RERANK_MAX
    assert documents(hits) == [str(n) for n in range(300)]


@pytest.mark.parametrize("hits", [[], [hit(0, None)]])
def test_rerank_job_is_enqueued_only_with_readable_hits(hits: list[Hit]) -> None:
    client = Client(hits, AssertionError())
    assert len(search(client)) == len(hits)
    assert len(client.calls) == 1
    client = Client([hit(0)], AssertionError(), to_rerank=False)
    assert not search(client).reranked
    assert len(client.calls) == 1


def test_search_past_its_deadline_is_not_reranked() -> None:
    client = Client([hit(0)], AssertionError())
    hits = search(client, timeout=0.0)
    assert (hits.reason, len(client.calls)) == (pipeline.RERANKER_TOO_SLOW, 1)


def test_asynchronous_client_has_the_same_pipeline() -> None:
    sync = Client([hit(0), hit(1)], [(1, 1.0), (0, 0.0)])

    class AsyncClient(AsyncVestry):
        async def _run(self, operation: Callable[[], Any], *, atomic: bool = False) -> Any:
            await asyncio.sleep(0)
            return sync._run(operation, atomic=atomic)

        async def _run_search_job(self, *arguments: Any) -> Any:
            await asyncio.sleep(0)
            return sync._run_search_job(*arguments)

    async def search() -> Hits:
        client = AsyncClient("postgresql://nowhere.invalid/none")
        return await client.search("a query", owner="ann", privacy="private")

    start = time.monotonic()
    hits = asyncio.run(search())
    assert documents(hits) == ["1", "0"]
    assert hits.rerank_s <= time.monotonic() - start


def test_hits_are_a_read_only_sequence() -> None:
    hits = Hits((hit(0), hit(1), hit(2)), "space")
    assert len(hits) == 3
    assert documents(hits) == ["0", "1", "2"]
    assert hits[0] in hits
    assert [one.document for one in hits[1:]] == ["1", "2"]
    assert hits.index(hits[2]) == 2
    assert not Hits((), "space")
    with pytest.raises(TypeError):
        hits[0] = hits[1]  # type: ignore[index]
    with pytest.raises(AttributeError):
        hits.reason = "other"  # type: ignore[misc]


def test_hits_are_equal_by_content() -> None:
    hits = Hits((hit(0), hit(1)), "space")
    for same in (
        Hits((hit(0), hit(1)), "space", reason="slow"),
        [hit(0), hit(1)],
        (hit(0), hit(1)),
    ):
        assert hits == same
        assert same == hits
    for other in (Hits((hit(1), hit(0)), "space"), [hit(0)], (), None, "hits"):
        assert hits != other
    assert Hits((), "space") == []
    with pytest.raises(TypeError, match="unhashable"):
        hash(hits)


def test_first_reason_of_degradation_is_kept() -> None:
    hits = Hits((), "space").degrade("first").degrade("second")
    assert (hits.degraded, hits.reason) == (True, "first")
