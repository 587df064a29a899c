"""The rerank kind: by a reranker, or by similarity."""

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
from tests.faulty_echo import FaultyEchoModel
from tests.labelling import SECRET, a_context, failed
from tests.routing import NotingGuard, router
from vestry.crypto.envelope import plain_digest
from vestry.jobs.rerank import Rerank, RerankResult

PASSAGES = ["bread and wine", "the king walked by the river", "a river in the rain"]


class Scoring:
    """A fake reranker: scores are given beforehand."""

    def __init__(self, *scores: float | InferenceError) -> None:
        self.scores = scores
        self.asked: list[tuple[str, tuple[str, ...], bool]] = []

    def rerank(
        self, query: str, passages: Sequence[str], *, urgent: bool = False
    ) -> Sequence[float]:
        self.asked.append((query, tuple(passages), urgent))
        if isinstance(self.scores[0], InferenceError):
            raise self.scores[0]
        return [float(score) for score in self.scores if not isinstance(score, InferenceError)]

    def warm_up(self) -> None:
        pass


class Embedding(FaultyEchoModel):
    """Counts its calls; what it is asked to rerank it embeds."""

    calls = 0

    def embed(self, *given: Any, **more: Any) -> Any:
        self.calls += 1
        return super().embed(*given, **more)

    def rerank(self, *_: Any, **__: Any) -> Any:
        raise AssertionError


def job(query: str, *passages: Any, limit: int | None = None, **more: Any) -> Job:
    asked = Rerank(query, passages or PASSAGES, limit).prepare(plain_digest)
    fields: dict[str, Any] = {
        "id": uuid4(), "kind": "rerank", "task": None, "owner": "alice", "privacy": "shareable",
        "latency": "bulk", "attempt": 1, "model": None, "payload": json.loads(asked.payload),
    }  # fmt: skip
    return Job(**fields | more)


def run(by: Any, *jobs: Job, context: Any = None) -> list[Outcome]:
    made = by if isinstance(by, Router) else router("rerank", {"only": by})
    return list(RerankHandler(made)(jobs, context or a_context()))


def places(outcome: Outcome) -> list[int]:
    assert isinstance(outcome, Succeeded), outcome
    json.dumps(outcome.result, allow_nan=False)
    return [one.index for one in RerankResult.from_json(outcome.result).ranking]


def test_passages_come_back_best_first_of_equal_ones_the_earlier() -> None:
    model = Scoring(0.5, -3, 0.5)
    (outcome,) = run(model, job("q", latency="interactive"))
    assert isinstance(outcome, Succeeded)
    assert outcome.result == {
        "ranking": [
            {"index": 0, "score": 0.5}, {"index": 2, "score": 0.5}, {"index": 1, "score": -3.0}
        ]
    }  # fmt: skip
    assert model.asked == [("q", tuple(PASSAGES), True)]
    assert places(run(model, job("q", limit=1))[0]) == [0]


def test_without_a_reranker_similarity_decides() -> None:
    model = Embedding()
    (outcome,) = run(model, job("river rain"))
    assert places(outcome) == [2, 1, 0]
    assert isinstance(outcome, Succeeded)
    assert outcome.served is not None
    assert outcome.served.input_tokens == sum(
        FaultyEchoModel().count_tokens(["river rain", *PASSAGES])
    )
    # The query, as a query, and the passages.
    assert model.calls == 2


def test_of_a_long_passage_the_best_piece_counts() -> None:
    long = "\n\n".join([part * 40 for part in ("nothing to the point. ", "river rain. ") * 3])
    assert places(run(Embedding(), job("river rain", "a river", long))[0]) == [1, 0]


def test_a_passage_that_is_too_long_for_a_reranker_is_named() -> None:
    told = failed(run(Scoring(TooLong("too long", indices=[2])), job("q"))[0])
    assert (told.code, told.message, told.retryable) == ("too_long", "passage 2: too long", False)
    query = failed(run(Embedding(), job("word " * 400))[0])
    assert (query.code, query.message.startswith("the query is longer")) == ("too_long", True)


def test_a_passage_at_fault_is_named_and_the_neighbours_job_is_served() -> None:
    bad, fine = run(Embedding(), job("river", "fine", f"echo!refused {SECRET}"), job("river"))
    assert failed(bad).code == "backend_refused"
    assert failed(bad).message.startswith("passage 1: ")
    assert places(fine)[0] in {1, 2}


def test_a_reranker_that_is_away_is_replaced_by_similarity_visibly() -> None:
    both = router("rerank", {"first": Scoring(BackendUnavailable()), "second": Embedding()})
    (outcome,) = run(both, job("river rain"))
    assert places(outcome) == [2, 1, 0]
    assert isinstance(outcome, Succeeded)
    assert outcome.served is not None
    assert (outcome.served.degraded, outcome.served.reason) == (True, "backend_unavailable")


def test_an_abandoned_job_is_not_begun() -> None:
    model, gone = Scoring(1, 2, 3), job("q")
    assert failed(run(model, gone, context=a_context(gone.id))[0]).code == "abandoned"
    assert model.asked == []


def test_what_cannot_be_served_now_waits() -> None:
    away = router("rerank", {"only": Scoring(1)}, gate=NotingGuard({"only": "open"}))
    assert failed(run(away, job("q"))[0]).uncounted


@pytest.mark.parametrize(
    "payload",
    [
        None, {}, {"query": "q"}, {"query": "q", "passages": []}, {"query": "q", "passages": "ab"},
        {"query": " ", "passages": ["a"]}, {"query": "q", "passages": ["a", f"{SECRET}\0"]},
        {"query": "q", "passages": ["a", 7]}, {"query": "q", "passages": ["a"], "limit": 0},
    ],
)  # fmt: skip
def test_a_bad_payload_fails_alone_and_is_not_quoted(payload: Any) -> None:
    bad, fine = run(FaultyEchoModel(), job("x", payload=payload), job("river"))
    assert isinstance(bad, Failed)
    assert failed(bad).code == "bad_payload"
    assert len(places(fine)) == 3


def test_the_real_model_ranks_by_meaning(minilm: SentenceTransformersModel) -> None:
    passages = [
        "We had roast beef and wine for dinner.",
        "I walked along the river in the rain.",
        "She was ill with a fever for three days.",
    ]
    asked = [("a wet stroll by the water", 1), ("sickness", 2), ("what did they eat", 0)]
    outcomes = run(minilm, *(job(query, *passages) for query, _ in asked))
    assert [places(outcome)[0] for outcome in outcomes] == [best for _, best in asked]
