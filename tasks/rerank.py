"""The `rerank` kind: passages ordered by how well they answer a query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, cast

from inference.errors import CallCancelled, InferenceError, TooLong
from inference.protocol import EmbeddingModel, RerankModel
from inference.remote.egress import on_behalf_of
from inference.routing.policy import Candidate
from inference.routing.router import RerouteRequired, Router
from tasks.embedding_batch import (
    Chunkers,
    EmbeddingBatch,
    LongTextEmbedder,
    PendingVector,
    error_of,
    tokens_of,
)
from tasks.protocol import (
    BadPayload,
    Context,
    Failed,
    Job,
    Outcome,
    Succeeded,
    outcome_of_error,
    served_of,
    text_of,
)
from vestry.lanes import Latency

DECIMALS: Final = 6


@dataclass(frozen=True, slots=True)
class RerankPlan:
    """One job's request, read from its payload."""

    job: Job
    query: str = field(repr=False)
    passages: tuple[str, ...] = field(repr=False)
    limit: int | None


@dataclass(frozen=True, slots=True)
class Scored:
    """A score for each passage, in order, and the input tokens, if known."""

    scores: Sequence[float]
    input_tokens: int | None = None


class RerankHandler:
    """Runs rerank jobs, one after the other. Safe to call from several threads.

    Args:
        router: this process's Router.
    """

    def __init__(self, router: Router) -> None:
        self._router = router
        self._chunkers = Chunkers()

    def __call__(self, batch: Sequence[Job], context: Context) -> Sequence[Outcome]:
        """One outcome per job, in the batch's order."""
        return [self._run(job, context) for job in batch]

    def _run(self, job: Job, context: Context) -> Outcome:
        try:
            plan = plan_of(job)
            with on_behalf_of([job.id]):
                result = self._router.serve(
                    job.routing_request, partial(self._score, plan, context)
                )
        except BadPayload as error:
            return Failed("bad_payload", str(error))
        except (InferenceError, RerouteRequired) as error:
            return outcome_of_error(error, _subject(error))
        ranking = ranked(result.value.scores, plan.limit)
        return Succeeded({"ranking": ranking}, served=served_of(result, result.value.input_tokens))

    def _score(
        self,
        plan: RerankPlan,
        context: Context,
        model: RerankModel | EmbeddingModel,
        candidate: Candidate,
    ) -> Scored:
        """Score by a reranker, or by similarity if the model is an embedding model."""
        urgent = plan.job.latency == Latency.INTERACTIVE
        if context.cancellation.is_lost(plan.job.id):
            raise CallCancelled
        if "embedding" in candidate.model.kinds:
            embedding = cast("EmbeddingModel", model)
            return self._by_similarity(embedding, plan, context, urgent=urgent)
        reranker = cast("RerankModel", model)
        return Scored(reranker.rerank(plan.query, plan.passages, urgent=urgent))

    def _by_similarity(
        self, model: EmbeddingModel, plan: RerankPlan, context: Context, *, urgent: bool
    ) -> Scored:
        """Cosine similarity of the query to each passage, to the best piece of a long one."""
        embeddings, texts = EmbeddingBatch(), LongTextEmbedder(self._chunkers.of(model))
        job = plan.job.id
        (tokens,) = model.count_tokens([plan.query], "query")
        if tokens > model.max_tokens:
            raise TooLong("the query is longer than the model reads; nothing was truncated")
        query = embeddings.request(job, plan.query, tokens, "query")
        passages: list[list[PendingVector]] = []
        for index, passage in enumerate(plan.passages):
            try:
                passages.append(texts.request(embeddings, job, passage))
            except InferenceError as error:
                raise _at(error, index) from None
        embeddings.embed(model, context.cancellation.is_lost, urgent=urgent)
        if embeddings.backend_error is not None:
            raise embeddings.backend_error
        if query.error is not None:
            raise _at(query.error)
        scores = [_nearest(query, pieces, index) for index, pieces in enumerate(passages)]
        return Scored(scores, tokens + sum(map(tokens_of, passages)))


def _nearest(query: PendingVector, pieces: Sequence[PendingVector], index: int) -> float:
    error = error_of(pieces)
    if error is not None:
        raise _at(error, index)
    vectors = [piece.vector for piece in pieces if piece.vector is not None]
    if query.vector is None or len(vectors) < len(pieces):
        raise CallCancelled
    return max(float(vector @ query.vector) for vector in vectors)


def _at(error: InferenceError, *passages: int) -> InferenceError:
    """The same error, with indices of the job's passages."""
    return type(error)(str(error), retry_after=error.retry_after, indices=passages)


def ranked(scores: Sequence[float], limit: int | None) -> list[dict[str, Any]]:
    """Indices and scores, best first; of equal scores the earlier index first."""
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    return [{"index": n, "score": round(float(scores[n]), DECIMALS)} for n in order[:limit]]


def plan_of(job: Job) -> RerankPlan:
    """Read a job's payload.

    Raises:
        BadPayload: it is malformed; the message names the field and nothing of its content.
    """
    payload = job.payload
    if not isinstance(payload, Mapping):
        raise BadPayload("the payload is not an object")
    passages, limit = payload.get("passages"), payload.get("limit")
    if not isinstance(passages, list) or not passages:
        raise BadPayload("passages is not a list with at least one entry")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise BadPayload("limit is not a positive whole number")
    return RerankPlan(
        job,
        text_of("query", payload.get("query")),
        tuple(text_of(f"passages[{index}]", text) for index, text in enumerate(passages)),
        limit,
    )


def _subject(error: InferenceError | RerouteRequired) -> str | None:
    indices = getattr(error, "indices", ())
    return f"passage {indices[0]}" if indices else None
