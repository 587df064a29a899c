"""The `embedding` kind: vectors of texts, and documents cut, embedded and stored for search."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from inference.errors import InferenceError
from inference.protocol import EmbeddingModel
from tasks.chunking import Chunker, Span
from tasks.embedding_plans import (
    BadPayload,
    DocumentsPlan,
    PlannedDocument,
    TextsPlan,
    abandoned,
    content_of,
    failed,
    plan_of,
)
from tasks.protocol import Context, Failed, Job, Outcome, Served
from tasks.vector_pool import VectorPool

KIND = "embedding"
INTERACTIVE = "interactive"


class EmbeddingHandler:
    """Runs batches of embedding jobs on one backend. Safe to call from several threads."""

    def __init__(self, backend: EmbeddingModel, space_id: int) -> None:
        """Bind a backend to its space's row.

        Args:
            backend: loaded.
            space_id: what `vestry.ensure_space_v1` returned for `backend.space`.
        """
        self._backend = backend
        self._space_id = space_id
        self._chunker = Chunker(backend)

    def __call__(self, batch: Sequence[Job], context: Context) -> Sequence[Outcome]:
        """One outcome a job, in the batch's order.

        All texts of all jobs are embedded together, each distinct one once. Jobs that are abandoned
        meanwhile cost nothing more from the next call of the backend on.
        """
        planned = [self._plan(job) for job in batch]
        pool = VectorPool()
        outcomes: dict[int, Outcome] = {}
        for place, plan in enumerate(planned):
            if isinstance(plan, Failed):
                outcomes[place] = plan
            elif context.handing.abandoned(plan.job.id):
                outcomes[place] = abandoned()
            else:
                try:
                    self._collect(plan, pool, context)
                except InferenceError as error:
                    outcomes[place] = failed(error, None, self._served(0))
        pool.embed(
            self._backend,
            context.handing.abandoned,
            urgent=any(job.latency == INTERACTIVE for job in batch),
        )
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

    def _collect(self, plan: TextsPlan | DocumentsPlan, pool: VectorPool, context: Context) -> None:
        if isinstance(plan, TextsPlan):
            tokens = self._backend.count_tokens(plan.texts, plan.input)
            plan.wanted = [
                pool.want(plan.job.id, text, count, plan.input)
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

    def _cut(self, job_id: UUID, documents: Sequence[PlannedDocument], pool: VectorPool) -> None:
        for document, spans in zip(documents, self._split(documents), strict=True):
            if isinstance(spans, InferenceError):
                document.cause = spans
                document.error = (spans.code, str(spans))
            else:
                document.chunks = [
                    (span, pool.want(job_id, span.text, span.tokens, "document")) for span in spans
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
