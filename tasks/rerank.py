"""The `rerank` kind: passages in the order in which they answer a query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from inference.errors import CallCancelled, InferenceError, TooLong
from inference.protocol import EmbeddingModel
from inference.remote.egress import on_behalf_of
from inference.routing.policy import Candidate
from inference.routing.router import RerouteRequired, Router
from tasks.classification_payload import text_of
from tasks.outcomes import outcome_of_error, served_of
from tasks.protocol import BadPayload, Context, Failed, Job, Outcome, Succeeded
from tasks.vector_pool import (
    Chunkers,
    EmbeddingBatch,
    LongTextEmbedder,
    PendingVector,
    error_of,
    tokens_of,
)

INTERACTIVE: Final = "interactive"
DECIMALS: Final = 6


@dataclass(frozen=True, slots=True)
class RerankPlan:
    """What one job wants ranked."""

    job: Job
    query: str = field(repr=False)
    passages: tuple[str, ...] = field(repr=False)
    limit: int | None


@dataclass(frozen=True, slots=True)
class Scored:
    """A score for each passage, in order, and the tokens that were read, if known."""

    scores: Sequence[float]
    input_tokens: int | None = None


class RerankHandler:
    """Runs rerank jobs, one after the other. Safe to call from several threads.

    Args:
        router: of this process.
    """

    def __init__(self, router: Router) -> None:
        self._router = router
        self._chunkers = Chunkers()

    def __call__(self, batch: Sequence[Job], context: Context) -> Sequence[Outcome]:
        """One outcome a job, in the batch's order."""
        return [self._run(job, context) for job in batch]

    def _run(self, job: Job, context: Context) -> Outcome:
        try:
            plan = plan_of(job)
            with on_behalf_of([job.id]):
                answer = self._router.serve(
                    job.routing_request, partial(self._score, plan, context)
                )
        except BadPayload as error:
            return Failed("bad_payload", str(error))
        except (InferenceError, RerouteRequired) as error:
            return outcome_of_error(error, _subject(error))
        ranking = ranked(answer.value.scores, plan.limit)
        return Succeeded({"ranking": ranking}, served=served_of(answer, answer.value.input_tokens))

    def _score(
        self, plan: RerankPlan, context: Context, model: Any, candidate: Candidate
    ) -> Scored:
        """By the model's own scores, or by similarity where it is an embedding model."""
        urgent = plan.job.latency == INTERACTIVE
        if context.cancellation.is_lost(plan.job.id):
            raise CallCancelled
        if "embedding" in candidate.model.kinds:
            return self._by_similarity(model, plan, context, urgent=urgent)
        return Scored(model.rerank(plan.query, plan.passages, urgent=urgent))

    def _by_similarity(
        self, model: EmbeddingModel, plan: RerankPlan, context: Context, *, urgent: bool
    ) -> Scored:
        """Cosine similarity of the query to each passage, to the best piece of a long one."""
        pool, texts = EmbeddingBatch(), LongTextEmbedder(self._chunkers.of(model))
        job = plan.job.id
        (tokens,) = model.count_tokens([plan.query], "query")
        if tokens > model.max_tokens:
            raise TooLong("the query is longer than the model reads; nothing was cut off")
        query = pool.request(job, plan.query, tokens, "query")
        passages: list[list[PendingVector]] = []
        for place, passage in enumerate(plan.passages):
            try:
                passages.append(texts.request(pool, job, passage))
            except InferenceError as error:
                raise _about(error, place) from None
        pool.embed(model, context.cancellation.is_lost, urgent=urgent)
        if pool.backend_error is not None:
            raise pool.backend_error
        if query.error is not None:
            raise _about(query.error)
        scores = [_nearest(query, pieces, place) for place, pieces in enumerate(passages)]
        return Scored(scores, tokens + sum(map(tokens_of, passages)))


def _nearest(query: PendingVector, pieces: Sequence[PendingVector], place: int) -> float:
    error = error_of(pieces)
    if error is not None:
        raise _about(error, place)
    vectors = [piece.vector for piece in pieces if piece.vector is not None]
    if query.vector is None or len(vectors) < len(pieces):
        raise CallCancelled
    return max(float(vector @ query.vector) for vector in vectors)


def _about(error: InferenceError, *places: int) -> InferenceError:
    """The same error, its places those of the job's own passages."""
    return type(error)(str(error), retry_after=error.retry_after, indices=places)


def ranked(scores: Sequence[float], limit: int | None) -> list[dict[str, Any]]:
    """Places and scores, best first; of equal ones the earlier first."""
    order = sorted(range(len(scores)), key=lambda place: -scores[place])
    return [{"index": p, "score": round(float(scores[p]), DECIMALS)} for p in order[:limit]]


def plan_of(job: Job) -> RerankPlan:
    """Read a job's payload.

    Raises:
        BadPayload: it is malformed; the message names the field and nothing of it.
    """
    payload = job.payload
    if not isinstance(payload, Mapping):
        raise BadPayload("the payload is not an object")
    passages, limit = payload.get("passages"), payload.get("limit")
    if not isinstance(passages, list) or not passages:
        raise BadPayload("passages is not a list of at least one")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise BadPayload("limit is not a whole number from 1")
    return RerankPlan(
        job,
        text_of("query", payload.get("query")),
        tuple(text_of(f"passages[{place}]", text) for place, text in enumerate(passages)),
        limit,
    )


def _subject(error: InferenceError | RerouteRequired) -> str | None:
    places = getattr(error, "indices", ())
    return f"passage {places[0]}" if places else None
