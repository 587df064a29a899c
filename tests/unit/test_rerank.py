"""The rerank handler: by a reranker, or by similarity."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import pytest

from inference.backends.sentence_transformers_local import SentenceTransformersModel
from inference.errors import BackendUnavailable, InferenceError, TooLong
from inference.routing.router import Router
from tasks.protocol import Failed, Job, Outcome, Succeeded
from tasks.rerank import RerankHandler
from tests.classification_jobs import SECRET, context_of, failed
from tests.faulty_echo import FaultyEchoModel
from tests.handler_fakes import FakeGuard, RecordingModel, router
from vestry.crypto.envelope import plain_digest
from vestry.jobs.rerank import Rerank, RerankResult

PASSAGES = ["bread and wine", "the king walked by the river", "a river in the rain"]


class FakeReranker:
    """A fake with prepared scores or an error."""

    def __init__(self, *scores: float | InferenceError) -> None:
        self.scores = scores
        self.requests: list[tuple[str, tuple[str, ...], bool]] = []

    def rerank(
        self, query: str, passages: Sequence[str], *, urgent: bool = False
    ) -> Sequence[float]:
        self.requests.append((query, tuple(passages), urgent))
        if isinstance(self.scores[0], InferenceError):
            raise self.scores[0]
        return [float(score) for score in self.scores if not isinstance(score, InferenceError)]

    def warm_up(self) -> None:
        pass


class EmbeddingModel(RecordingModel):
    """An embedding model, which must not be called as a reranker."""

    def rerank(self, *_: Any, **__: Any) -> Any:
        raise AssertionError


def job(query: str, *passages: Any, limit: int | None = None, **more: Any) -> Job:
    prepared = Rerank(query, passages or PASSAGES, limit).prepare(plain_digest)
    fields: dict[str, Any] = {
        "id": uuid4(), "kind": "rerank", "task": None, "owner": "alice", "privacy": "shareable",
        "latency": "bulk", "model": None, "payload": json.loads(prepared.payload),
    }  # fmt: skip
    return Job(**fields | more)


def run(target: Any, *jobs: Job, context: Any = None) -> list[Outcome]:
    """Run a batch with a Router or one model."""
    is_router = isinstance(target, Router)
    handler = RerankHandler(target if is_router else router("rerank", {"only": target}))
    return list(handler(jobs, context or context_of()))


def indices(outcome: Outcome) -> list[int]:
    assert isinstance(outcome, Succeeded), outcome
    json.dumps(outcome.result, allow_nan=False)
    return [one.index for one in RerankResult.from_json(outcome.result).ranking]


def test_passages_are_ranked_best_first_then_by_index() -> None:
    model = FakeReranker(0.5, -3, 0.5)
    (outcome,) = run(model, job("q", latency="interactive"))
    assert isinstance(outcome, Succeeded)
    assert outcome.result == {
        "ranking": [
            {"index": 0, "score": 0.5}, {"index": 2, "score": 0.5}, {"index": 1, "score": -3.0}
        ]
    }  # fmt: skip
    assert model.requests == [("q", tuple(PASSAGES), True)]
    assert indices(run(model, job("q", limit=1))[0]) == [0]


def test_embedding_model_ranks_by_similarity() -> None:
    model = EmbeddingModel()
    (outcome,) = run(model, job("river rain"))
    assert indices(outcome) == [2, 1, 0]
    assert isinstance(outcome, Succeeded)
    assert outcome.served is not None
    assert outcome.served.input_tokens == sum(
        FaultyEchoModel().count_tokens(["river rain", *PASSAGES])
    )
    # The query, as a query, and the passages.
    assert len(model.calls) == 2


def test_long_passage_is_scored_by_its_best_piece() -> None:
    long = "\n\n".join([part * 40 for part in ("nothing to the point. ", "river rain. ") * 3])
    assert indices(run(EmbeddingModel(), job("river rain", "a river", long))[0]) == [1, 0]


def test_too_long_passage_is_named() -> None:
    failure = failed(run(FakeReranker(TooLong("too long", indices=[2])), job("q"))[0])
    assert (failure.code, failure.message, failure.retryable) == (
        "too_long",
        "passage 2: too long",
        False,
    )
    query = failed(run(EmbeddingModel(), job("word " * 400))[0])
    assert (query.code, query.message.startswith("the query is longer")) == ("too_long", True)


def test_refused_passage_is_named_and_fails_its_own_job() -> None:
    bad, fine = run(EmbeddingModel(), job("river", "fine", f"echo!refused {SECRET}"), job("river"))
    assert failed(bad).code == "backend_refused"
    assert failed(bad).message.startswith("passage 1: ")
    assert indices(fine)[0] in {1, 2}


def test_unavailable_reranker_is_replaced_and_job_degraded() -> None:
    both = router(
        "rerank", {"first": FakeReranker(BackendUnavailable()), "second": EmbeddingModel()}
    )
    (outcome,) = run(both, job("river rain"))
    assert indices(outcome) == [2, 1, 0]
    assert isinstance(outcome, Succeeded)
    assert outcome.served is not None
    assert (outcome.served.degraded, outcome.served.reason) == (True, "backend_unavailable")


def test_cancelled_job_is_not_started() -> None:
    model, cancelled = FakeReranker(1, 2, 3), job("q")
    assert failed(run(model, cancelled, context=context_of(cancelled.id))[0]).code == "abandoned"
    assert model.requests == []


def test_job_without_available_model_waits() -> None:
    unavailable = router("rerank", {"only": FakeReranker(1)}, guard=FakeGuard(only="open"))
    assert failed(run(unavailable, job("q"))[0]).uncounted


@pytest.mark.parametrize(
    "payload",
    [
        None, {}, {"query": "q"}, {"query": "q", "passages": []}, {"query": "q", "passages": "ab"},
        {"query": " ", "passages": ["a"]}, {"query": "q", "passages": ["a", f"{SECRET}\0"]},
        {"query": "q", "passages": ["a", 7]}, {"query": "q", "passages": ["a"], "limit": 0},
    ],
)  # fmt: skip
def test_invalid_payload_fails_alone_and_is_not_quoted(payload: Any) -> None:
    bad, fine = run(FaultyEchoModel(), job("x", payload=payload), job("river"))
    assert isinstance(bad, Failed)
    assert failed(bad).code == "bad_payload"
    assert len(indices(fine)) == 3


def test_minilm_ranks_by_meaning(minilm: SentenceTransformersModel) -> None:
    passages = [
        "We had roast beef and wine for dinner.",
        "I walked along the river in the rain.",
        "She was ill with a fever for three days.",
    ]
    queries = [("a wet stroll by the water", 1), ("sickness", 2), ("what did they eat", 0)]
    outcomes = run(minilm, *(job(query, *passages) for query, _ in queries))
    assert [indices(outcome)[0] for outcome in outcomes] == [best for _, best in queries]
