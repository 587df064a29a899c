"""The `embedding` kind: vectors of texts, and documents cut, embedded and stored for search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from uuid import UUID

from inference.errors import InferenceError, NoAdequateModel
from inference.protocol import EmbeddingModel, SpaceSpec
from inference.routing.policy import Candidate
from inference.routing.router import RerouteRequired, RoutedResult, Router
from tasks.chunking import Chunker, Span
from tasks.embedding_payload import (
    DocumentsPlan,
    PlannedDocument,
    TextsPlan,
    content_of,
    failed,
    plan_of,
)
from tasks.outcomes import cancelled_outcome, outcome_of_error, served_of
from tasks.protocol import BadPayload, Context, Failed, Job, Outcome, Rerouted
from tasks.vector_pool import EmbeddingBatch
from vestry.db.receipts import Served

KIND = "embedding"
INTERACTIVE = "interactive"

Spaces = Callable[[SpaceSpec], int]
"""Declares an embedding space (`vestry.ensure_space_v1`) and gives its row's id."""


class RoutedEmbedding:
    """The kind's handler: has each batch embedded by the model that its jobs ask for.

    A batch is of one model: that is how it was claimed.

    Args:
        router: of this process.
        spaces: declares a space once its model is loaded.
        default: the model for jobs that name none.
    """

    def __init__(self, router: Router, spaces: Spaces, default: str | None) -> None:
        self._router = router
        self._spaces = spaces
        self._default = default
        self._handlers: dict[str, EmbeddingHandler] = {}

    def __call__(self, batch: Sequence[Job], context: Context) -> Sequence[Outcome]:
        """One outcome a job, in the batch's order."""
        asked = self._model_of(batch[0].model)

        def call(model: EmbeddingModel, candidate: Candidate) -> Sequence[Outcome]:
            handler = self.handler(candidate, model)
            return handler([replace(job, model=None) for job in batch], context)

        try:
            answer = self._router.serve(replace(batch[0].routing_request, model=asked), call)
        except NoAdequateModel:
            # The model asked for is the caller's word and stays out of the message.
            failure = Failed("unknown_model", self._known())
            return [failure] * len(batch)
        except (InferenceError, RerouteRequired) as error:
            return [outcome_of_error(error)] * len(batch)
        return [_routed(outcome, answer) for outcome in answer.value]

    def _model_of(self, asked: str | None) -> str | None:
        """The catalogue's name for what a job asks for: a model's name, or its space's."""
        if asked is None:
            return self._default
        for name, handler in self._handlers.items():
            if handler.space.name == asked:
                return name
        return asked

    def handler(self, candidate: Candidate, model: EmbeddingModel) -> EmbeddingHandler:
        """The handler of one model, made with its space when it is first wanted."""
        name = candidate.model.name
        handler = self._handlers.get(name)
        if handler is None:
            server = candidate.backend.url is not None
            handler = EmbeddingHandler(model, self._spaces(model.space), server=server)
            self._handlers[name] = handler
        return handler

    def _known(self) -> str:
        known = {
            name: f"{name} (space {handler.space.name})" for name, handler in self._handlers.items()
        }
        if self._default is not None:
            known.setdefault(self._default, self._default)
        with_these = ", ".join(sorted(known.values())) or "no model"
        return f"the workers of this lane embed with {with_these} only"


class EmbeddingHandler:
    """Runs batches of embedding jobs on one model. Safe to call from several threads."""

    def __init__(self, backend: EmbeddingModel, space_id: int, *, server: bool = False) -> None:
        """Bind a model to its space's row.

        Args:
            backend: loaded.
            space_id: what `vestry.ensure_space_v1` returned for `backend.space`.
            server: it is called over a network: its failures are raised, for the Router to know of
                them, and are not the jobs'.
        """
        self._server = server
        self._backend = backend
        self._space_id = space_id
        self._chunker = Chunker(backend)

    @property
    def space(self) -> SpaceSpec:
        """The space it embeds in."""
        return self._backend.space

    def __call__(self, batch: Sequence[Job], context: Context) -> Sequence[Outcome]:
        """One outcome a job, in the batch's order.

        All texts of all jobs are embedded together, each distinct one once. Jobs that are abandoned
        meanwhile cost nothing more from the next call of the backend on.
        """
        planned = [self._plan(job) for job in batch]
        pool = EmbeddingBatch()
        outcomes: dict[int, Outcome] = {}
        for place, plan in enumerate(planned):
            if isinstance(plan, Failed):
                outcomes[place] = plan
            elif context.cancellation.is_lost(plan.job.id):
                outcomes[place] = cancelled_outcome()
            else:
                try:
                    self._collect(plan, pool, context)
                except InferenceError as error:
                    outcomes[place] = failed(error, None, self._served(0))
        pool.embed(
            self._backend,
            context.cancellation.is_lost,
            urgent=any(job.latency == INTERACTIVE for job in batch),
        )
        if self._server and pool.backend_error is not None:
            raise pool.backend_error
        for place, plan in enumerate(planned):
            if place not in outcomes and not isinstance(plan, Failed):
                outcomes[place] = self._outcome(plan)
        return [outcomes[place] for place in range(len(batch))]

    def _plan(self, job: Job) -> TextsPlan | DocumentsPlan | Failed:
        space = self._backend.space
        if job.model is not None and job.model not in {space.model, space.name}:
            # The model asked for is the caller's word and stays out of the message.
            return Failed(
                "unknown_model",
                f"the workers of this lane embed with {space.model} only (space {space.name})",
            )
        try:
            return plan_of(job)
        except BadPayload as error:
            return Failed("bad_payload", str(error))

    def _collect(
        self, plan: TextsPlan | DocumentsPlan, pool: EmbeddingBatch, context: Context
    ) -> None:
        if isinstance(plan, TextsPlan):
            tokens = self._backend.count_tokens(plan.texts, plan.input)
            plan.wanted = [
                pool.request(plan.job.id, text, count, plan.input)
                for text, count in zip(plan.texts, tokens, strict=True)
            ]
            return
        digest = context.digest[plan.job.owner]
        fresh: list[PlannedDocument] = []
        for document in plan.documents:
            if document.error is None and not document.superseded:
                content = content_of(document, plan.source, keep_text=plan.keep_text)
                document.content_hash = digest("document", content)
                document.unchanged = (
                    document.ref.indexed_hash == document.content_hash
                    and document.ref.indexed_space == self._backend.space.name
                )
                if not document.unchanged:
                    fresh.append(document)
        self._cut(plan.job.id, fresh, pool)

    def _cut(
        self, job_id: UUID, documents: Sequence[PlannedDocument], pool: EmbeddingBatch
    ) -> None:
        for document, spans in zip(documents, self._split(documents), strict=True):
            if isinstance(spans, InferenceError):
                document.cause = spans
                document.error = (spans.code, str(spans))
            else:
                document.chunks = [
                    (span, pool.request(job_id, span.text, span.tokens, "document"))
                    for span in spans
                ]

    def _split(self, documents: Sequence[PlannedDocument]) -> list[list[Span] | InferenceError]:
        """Together, which is faster; one by one only when one of them is at fault."""
        try:
            return list(self._chunker.split([document.text for document in documents]))
        except InferenceError as error:
            if not error.per_text:
                raise
            if len(documents) == 1:
                return [error]
            return [spans for document in documents for spans in self._split([document])]

    def _outcome(self, plan: TextsPlan | DocumentsPlan) -> Outcome:
        space = self._backend.space
        if isinstance(plan, TextsPlan):
            served = self._served(sum(wanted.tokens for wanted in plan.wanted))
            return plan.outcome(space, served)
        tokens = sum(span.tokens for document in plan.documents for span, _ in document.chunks)
        return plan.outcome(space, self._space_id, self._served(tokens))

    def _served(self, tokens: int) -> Served:
        return Served(
            backend=self._backend.name,
            model=self._backend.space.model,
            locality=self._backend.locality,
            input_tokens=tokens,
        )


def _routed(outcome: Outcome, answer: RoutedResult[Sequence[Outcome]]) -> Outcome:
    """With what the Router knows put onto the receipt."""
    if isinstance(outcome, Rerouted) or outcome.served is None:
        return outcome
    return replace(outcome, served=served_of(answer, outcome.served.input_tokens))
