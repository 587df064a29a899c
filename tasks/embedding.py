"""The `embedding` kind: vectors of texts; documents chunked, embedded and stored for search."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from inference.errors import BadVectors, InferenceError, NoAdequateModel
from inference.protocol import EmbeddingModel, InputType, SpaceSpec
from inference.routing.policy import Candidate
from inference.routing.router import RerouteRequired, RoutedResult, Router
from tasks.chunking import CHUNKING_VERSION, Chunker, Span
from tasks.embedding_batch import EmbeddingBatch, PendingVector
from tasks.protocol import (
    BadPayload,
    Chunk,
    ConfirmDocument,
    Context,
    Failed,
    IndexDocument,
    Job,
    Outcome,
    Rerouted,
    Succeeded,
    cancelled_outcome,
    failure_of,
    outcome_of_error,
    served_of,
)
from vestry.db.receipts import Served
from vestry.lanes import Latency

if TYPE_CHECKING:
    from models.documents import DocumentState

DECIMALS: Final = 8
"""Of a vector's numbers in JSON: float32 has 24 bits, about 7 significant digits."""

Spaces = Callable[[SpaceSpec], int]
"""Declares an embedding space (`vestry.ensure_space_v1`) and returns its row's id."""


class RoutedEmbedding:
    """The kind's handler: each batch is embedded by the model that its jobs request.

    All jobs of a batch request the same model: the claim selects by model.

    Args:
        router: this process's Router.
        spaces: declares a space once its model is loaded.
        default: the model for jobs that name none.
    """

    def __init__(self, router: Router, spaces: Spaces, default: str | None) -> None:
        self._router = router
        self._spaces = spaces
        self._default = default
        self._handlers: dict[str, EmbeddingHandler] = {}

    def __call__(self, batch: Sequence[Job], context: Context) -> Sequence[Outcome]:
        """One outcome per job, in the batch's order."""
        name = self._model_name(batch[0].model)

        def call(model: EmbeddingModel, candidate: Candidate) -> Sequence[Outcome]:
            handler = self.handler(candidate, model)
            return handler(batch, context)

        try:
            result = self._router.serve(replace(batch[0].routing_request, model=name), call)
        except NoAdequateModel:
            # The requested name is the caller's text and stays out of the message.
            failure = Failed("unknown_model", self._known_models())
            return [failure] * len(batch)
        except (InferenceError, RerouteRequired) as error:
            return [outcome_of_error(error)] * len(batch)
        return [_with_routing(outcome, result) for outcome in result.value]

    def _model_name(self, requested: str | None) -> str | None:
        """The catalogue's name of the model that a job names, by the model's or its space's name."""
        if requested is None:
            return self._default
        for name, handler in self._handlers.items():
            if handler.space.name == requested:
                return name
        return requested

    def handler(self, candidate: Candidate, model: EmbeddingModel) -> EmbeddingHandler:
        """The handler of one model; the first call declares the model's space."""
        name = candidate.model.name
        handler = self._handlers.get(name)
        if handler is None:
            remote = candidate.backend.url is not None
            handler = EmbeddingHandler(model, self._spaces(model.space), remote=remote)
            self._handlers[name] = handler
        return handler

    def _known_models(self) -> str:
        models = {
            name: f"{name} (space {handler.space.name})" for name, handler in self._handlers.items()
        }
        if self._default is not None:
            models.setdefault(self._default, self._default)
        names = ", ".join(sorted(models.values())) or "none"
        return f"the job's model is unknown; models of this lane: {names}"


class EmbeddingHandler:
    """Runs batches of embedding jobs on one model. Safe to call from several threads."""

    def __init__(self, backend: EmbeddingModel, space_id: int, *, remote: bool = False) -> None:
        """Bind a model to its space's row.

        Args:
            backend: loaded.
            space_id: returned by `vestry.ensure_space_v1` for `backend.space`.
            remote: the model is on a server: errors of the server are raised to the Router, and do
                not fail the jobs.
        """
        self._remote = remote
        self._backend = backend
        self._space_id = space_id
        self._chunker = Chunker(backend)

    @property
    def space(self) -> SpaceSpec:
        """The embedding space of the model."""
        return self._backend.space

    def __call__(self, batch: Sequence[Job], context: Context) -> Sequence[Outcome]:
        """One outcome per job, in the batch's order.

        All texts of all jobs are embedded together, each distinct one once. A job that is cancelled
        meanwhile is left out of later calls of the backend.
        """
        plans = [_plan_or_failure(job) for job in batch]
        embeddings = EmbeddingBatch()
        outcomes: dict[int, Outcome] = {}
        for position, plan in enumerate(plans):
            if isinstance(plan, Failed):
                outcomes[position] = plan
            elif context.cancellation.is_lost(plan.job.id):
                outcomes[position] = cancelled_outcome()
            else:
                try:
                    self._collect(plan, embeddings, context)
                except InferenceError as error:
                    outcomes[position] = _failed(error, None, self._served(0))
        embeddings.embed(
            self._backend,
            context.cancellation.is_lost,
            urgent=any(job.latency == Latency.INTERACTIVE for job in batch),
        )
        if self._remote and embeddings.backend_error is not None:
            raise embeddings.backend_error
        for position, plan in enumerate(plans):
            if position not in outcomes and not isinstance(plan, Failed):
                outcomes[position] = self._outcome(plan)
        return [outcomes[position] for position in range(len(batch))]

    def _collect(
        self, plan: TextsPlan | DocumentsPlan, embeddings: EmbeddingBatch, context: Context
    ) -> None:
        """Request the vectors of a job's texts."""
        if isinstance(plan, TextsPlan):
            tokens = self._backend.count_tokens(plan.texts, plan.input)
            plan.vectors = [
                embeddings.request(plan.job.id, text, count, plan.input)
                for text, count in zip(plan.texts, tokens, strict=True)
            ]
            return
        digest = context.digest[plan.job.owner]
        changed: list[PlannedDocument] = []
        for document in plan.documents:
            if document.error is None and not document.superseded:
                content = content_of(document, plan.source, keep_text=plan.keep_text)
                document.content_hash = digest("document", content)
                document.unchanged = (
                    document.state.indexed_hash == document.content_hash
                    and document.state.indexed_space == self._backend.space.name
                )
                if not document.unchanged:
                    changed.append(document)
        self._chunk(plan.job.id, changed, embeddings)

    def _chunk(
        self, job_id: UUID, documents: Sequence[PlannedDocument], embeddings: EmbeddingBatch
    ) -> None:
        for document, spans in zip(documents, self._split(documents), strict=True):
            if isinstance(spans, InferenceError):
                document.cause = spans
                document.error = (spans.code, str(spans))
            else:
                document.chunks = [
                    (span, embeddings.request(job_id, span.text, span.tokens, "document"))
                    for span in spans
                ]

    def _split(self, documents: Sequence[PlannedDocument]) -> list[list[Span] | InferenceError]:
        """Chunk all documents in one call, which is faster; one by one if a text is at fault."""
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
            served = self._served(sum(vector.tokens for vector in plan.vectors))
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


def _with_routing(outcome: Outcome, result: RoutedResult[Sequence[Outcome]]) -> Outcome:
    """The outcome with the Router's decision on its receipt."""
    if isinstance(outcome, Rerouted) or outcome.served is None:
        return outcome
    return replace(outcome, served=served_of(result, outcome.served.input_tokens))


@dataclass(slots=True)
class TextsPlan:
    """A job whose result is vectors."""

    job: Job
    input: InputType
    texts: list[str] = field(repr=False)
    vectors: list[PendingVector] = field(default_factory=list)

    def outcome(self, space: SpaceSpec, served: Served) -> Outcome:
        """All vectors, or the failure of the first text that has none."""
        rows: list[list[float]] = []
        for index, pending in enumerate(self.vectors):
            if pending.error is not None:
                return _failed(pending.error, f"text {index}", served)
            if pending.vector is None:
                return cancelled_outcome()
            rows.append(pending.vector.astype(float).round(DECIMALS).tolist())
        return Succeeded({"vectors": rows, "space": space.name}, served=served)


@dataclass(slots=True)
class PlannedDocument:
    """One document of a job; it has an `error`, is `superseded` or `unchanged`, or has `chunks`.

    Attributes:
        error: code and message.
        cause: the backend's error, if that is the reason.
    """

    state: DocumentState
    detail: dict[str, Any] = field(repr=False)
    text: str = field(repr=False)
    content_hash: bytes = b""
    unchanged: bool = False
    superseded: bool = False
    error: tuple[str, str] | None = None
    cause: InferenceError | None = None
    chunks: list[tuple[Span, PendingVector]] = field(default_factory=list, repr=False)

    def settle(self) -> bool:
        """Set `error` to the first of its chunks. Returns False if the job was cancelled meanwhile."""
        for _, pending in self.chunks:
            if pending.error is not None:
                self.cause = pending.error
                self.error = (pending.error.code, str(pending.error))
                return True
        return all(pending.vector is not None for _, pending in self.chunks)

    def effect(self, source: str, space_id: int, *, keep_text: bool) -> IndexDocument:
        """The effect that replaces the stored chunks by the new ones."""
        chunks: list[Chunk] = []
        for ordinal, (span, pending) in enumerate(self.chunks):
            if pending.vector is None:
                raise BadVectors
            vector = pending.vector.tolist()
            chunks.append(Chunk(ordinal, span.start, span.end, span.text, vector))
        return IndexDocument(
            document_id=self.state.document_id,
            generation=self.state.generation,
            source=source,
            space_id=space_id,
            content_hash=self.content_hash,
            detail=self.detail,
            chunks=chunks,
            keep_text=keep_text,
        )


@dataclass(slots=True)
class DocumentsPlan:
    """A job that indexes documents."""

    job: Job
    source: str
    keep_text: bool
    documents: list[PlannedDocument] = field(repr=False)

    def outcome(self, space: SpaceSpec, space_id: int, served: Served) -> Outcome:
        """Effects and counts; a failure only if every document or the backend failed."""
        effects: list[IndexDocument | ConfirmDocument] = []
        failures: list[dict[str, Any]] = []
        for index, document in enumerate(self.documents):
            if document.error is None and not document.settle():
                return cancelled_outcome()
            if document.cause is not None and not document.cause.per_text:
                return _failed(document.cause, None, served)
            if document.error is not None:
                code, message = document.error
                failures.append({"index": index, "code": code, "message": message})
            elif document.unchanged:
                effects.append(
                    ConfirmDocument(document.state.document_id, document.state.generation)
                )
            elif not document.superseded:
                effects.append(document.effect(self.source, space_id, keep_text=self.keep_text))
        if failures and len(failures) == len(self.documents):
            return self._all_failed(failures[0], served)
        written = [effect for effect in effects if isinstance(effect, IndexDocument)]
        result = {
            "documents": len(self.documents),
            "chunks": sum(len(effect.chunks) for effect in written),
            "embedded": len(written),
            "unchanged": sum(document.unchanged for document in self.documents),
            "superseded": sum(document.superseded for document in self.documents),
            "failed": failures,
            "space": space.name,
        }
        return Succeeded(result, tuple(effects), served if written else None)

    def _all_failed(self, first: Mapping[str, Any], served: Served) -> Failed:
        causes = [document.cause for document in self.documents]
        message = str(first["message"])
        if len(self.documents) > 1:
            message = f"all {len(self.documents)} documents failed, the first: {message}"
        retryable = all(cause is not None and cause.retryable for cause in causes)
        return Failed(str(first["code"]), message, retryable=retryable, served=served)


def plan_of(job: Job) -> TextsPlan | DocumentsPlan:
    """Read a job's payload.

    Raises:
        BadPayload: it is malformed.
    """
    payload = job.payload
    if not isinstance(payload, Mapping):
        raise BadPayload("the payload is not an object")
    texts, documents = payload.get("texts"), payload.get("documents")
    if (texts is None) == (documents is None):
        raise BadPayload("the payload must have either texts or documents")
    if texts is not None:
        return _texts_plan(job, texts)
    source, keep_text = payload.get("source"), payload.get("keep_text", True)
    if not isinstance(source, str) or not source:
        raise BadPayload("source is not a non-empty string")
    if not isinstance(keep_text, bool):
        raise BadPayload("keep_text is neither true nor false")
    if not isinstance(documents, list) or not documents:
        raise BadPayload("documents is not a list with at least one entry")
    if len(documents) != len(job.documents):
        raise BadPayload("the number of documents differs from that at enqueue")
    planned = [
        _document(value, state) for value, state in zip(documents, job.documents, strict=True)
    ]
    return DocumentsPlan(job, source, keep_text, planned)


def _plan_or_failure(job: Job) -> TextsPlan | DocumentsPlan | Failed:
    try:
        return plan_of(job)
    except BadPayload as error:
        return Failed("bad_payload", str(error))


def content_of(document: PlannedDocument, source: str, *, keep_text: bool) -> bytes:
    """Canonical bytes of everything that the stored form of a document depends on."""
    content = [CHUNKING_VERSION, source, keep_text, document.text, document.detail]
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode("ascii")


def _failed(error: InferenceError, subject: str | None, served: Served) -> Failed:
    """A model's error as a job's failure, with a hint if a text is too long."""
    failed = replace(failure_of(error, subject), served=served)
    if subject is None or error.code != "too_long":
        return failed
    message = f"{failed.message.rstrip('.')}; submit it as documents= to have it cut into chunks"
    return replace(failed, message=message)


def _texts_plan(job: Job, texts: Any) -> TextsPlan:
    if not isinstance(texts, list) or not texts:
        raise BadPayload("texts is not a list with at least one entry")
    for index, text in enumerate(texts):
        error = _text_error(text)
        if error is not None:
            raise BadPayload(f"text {index}: {error[1]}")
    match job.payload.get("input", "document"):
        case "document":
            return TextsPlan(job, "document", texts)
        case "query":
            return TextsPlan(job, "query", texts)
        case _:
            raise BadPayload("input is neither document nor query")


def _document(value: Any, state: DocumentState) -> PlannedDocument:
    if not isinstance(value, Mapping):
        return PlannedDocument(state, {}, "", error=("bad_document", "it is not an object"))
    detail = {name: value.get(name) for name in ("id", "date", "metadata")}
    error = _text_error(value.get("text")) or _detail_error(detail)
    text = "" if error else str(value["text"])
    return PlannedDocument(
        state, detail, text, superseded=not (error or state.current), error=error
    )


def _detail_error(detail: Mapping[str, Any]) -> tuple[str, str] | None:
    for name in ("id", "date"):
        if not isinstance(detail[name], str | None):
            return ("bad_document", f"its {name} is not a string")
    if not isinstance(detail["metadata"], Mapping | None):
        return ("bad_document", "its metadata is not an object")
    try:
        json.dumps(detail, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return ("bad_document", "its id, date or metadata is not valid Unicode")
    return None


def _text_error(text: Any) -> tuple[str, str] | None:
    if not isinstance(text, str):
        return ("bad_text", "it is missing or not a string")
    if not text.strip():
        return ("empty_text", "it is empty or only white space")
    if "\0" in text:
        return ("bad_text", "it holds a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError:
        return ("bad_text", "it is not valid Unicode")
    return None
