"""One embedding job from payload to outcome: what it wants embedded, and what becomes of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from inference.errors import BadVectors, InferenceError
from inference.protocol import InputType, SpaceSpec
from tasks.chunking import CHUNKING_VERSION, Span
from tasks.outcomes import cancelled_outcome
from tasks.protocol import (
    BadPayload,
    Chunk,
    ConfirmDocument,
    DocumentRef,
    Failed,
    IndexDocument,
    Job,
    Outcome,
    Succeeded,
)
from tasks.vector_pool import PendingVector
from vestry.db.receipts import Served

DECIMALS: Final = 8
"""Of a vector's numbers in JSON: float32 has 24 bits, about 7 significant digits."""


@dataclass(slots=True)
class TextsPlan:
    """A job that wants vectors back."""

    job: Job
    input: InputType
    texts: list[str] = field(repr=False)
    wanted: list[PendingVector] = field(default_factory=list)

    def outcome(self, space: SpaceSpec, served: Served) -> Outcome:
        """All vectors, or the first text's failure."""
        rows: list[list[float]] = []
        for place, wanted in enumerate(self.wanted):
            if wanted.error is not None:
                return failed(wanted.error, f"text {place}", served)
            if wanted.vector is None:
                return cancelled_outcome()
            rows.append(wanted.vector.astype(float).round(DECIMALS).tolist())
        return Succeeded({"vectors": rows, "space": space.name}, served=served)


@dataclass(slots=True)
class PlannedDocument:
    """One document of a job: exactly one of `effect`, `superseded`, `error`, `chunks` decides."""

    ref: DocumentRef
    detail: dict[str, Any] = field(repr=False)
    text: str = field(repr=False)
    content_hash: bytes = b""
    unchanged: bool = False
    superseded: bool = False
    error: tuple[str, str] | None = None
    cause: InferenceError | None = None
    chunks: list[tuple[Span, PendingVector]] = field(default_factory=list, repr=False)

    def settle(self) -> bool:
        """Take over the first fault of its chunks. False if the job was abandoned meanwhile."""
        for _, wanted in self.chunks:
            if wanted.error is not None:
                self.cause = wanted.error
                self.error = (wanted.error.code, str(wanted.error))
                return True
        return all(wanted.vector is not None for _, wanted in self.chunks)

    def effect(self, source: str, space_id: int, *, keep_text: bool) -> IndexDocument:
        """Replace what is stored by the new chunks."""
        chunks: list[Chunk] = []
        for ordinal, (span, wanted) in enumerate(self.chunks):
            if wanted.vector is None:
                raise BadVectors
            vector = wanted.vector.tolist()
            chunks.append(Chunk(ordinal, span.start, span.end, span.text, vector))
        return IndexDocument(
            document_id=self.ref.document_id,
            generation=self.ref.generation,
            source=source,
            space_id=space_id,
            content_hash=self.content_hash,
            detail=self.detail,
            chunks=chunks,
            keep_text=keep_text,
        )


@dataclass(slots=True)
class DocumentsPlan:
    """A job that wants documents indexed."""

    job: Job
    source: str
    keep_text: bool
    documents: list[PlannedDocument] = field(repr=False)

    def outcome(self, space: SpaceSpec, space_id: int, served: Served) -> Outcome:
        """Effects and counts; a failure only if every document failed or the backend is away."""
        effects: list[IndexDocument | ConfirmDocument] = []
        faults: list[dict[str, Any]] = []
        for place, document in enumerate(self.documents):
            if document.error is None and not document.settle():
                return cancelled_outcome()
            if document.cause is not None and not document.cause.per_text:
                return failed(document.cause, None, served)
            if document.error is not None:
                code, message = document.error
                faults.append({"index": place, "code": code, "message": message})
            elif document.unchanged:
                effects.append(ConfirmDocument(document.ref.document_id, document.ref.generation))
            elif not document.superseded:
                effects.append(document.effect(self.source, space_id, keep_text=self.keep_text))
        if faults and len(faults) == len(self.documents):
            return self._all_failed(faults[0], served)
        written = [effect for effect in effects if isinstance(effect, IndexDocument)]
        result = {
            "documents": len(self.documents),
            "chunks": sum(len(effect.chunks) for effect in written),
            "embedded": len(written),
            "unchanged": sum(document.unchanged for document in self.documents),
            "superseded": sum(document.superseded for document in self.documents),
            "failed": faults,
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
        raise BadPayload("the payload has neither or both of texts and documents")
    if texts is not None:
        return _texts_plan(job, texts)
    source, keep_text = payload.get("source"), payload.get("keep_text", True)
    if not isinstance(source, str) or not source:
        raise BadPayload("source is not a name")
    if not isinstance(keep_text, bool):
        raise BadPayload("keep_text is neither true nor false")
    if not isinstance(documents, list) or not documents:
        raise BadPayload("documents is not a list of at least one")
    if len(documents) != len(job.documents):
        raise BadPayload("documents are not as many as the job was enqueued for")
    planned = [_document(value, ref) for value, ref in zip(documents, job.documents, strict=True)]
    return DocumentsPlan(job, source, keep_text, planned)


def content_of(document: PlannedDocument, source: str, *, keep_text: bool) -> bytes:
    """Canonical bytes of everything that decides what is stored of a document."""
    content = [CHUNKING_VERSION, source, keep_text, document.text, document.detail]
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode("ascii")


def failed(error: InferenceError, subject: str | None, served: Served) -> Failed:
    """A backend's error as a job's."""
    message = str(error)
    if subject is not None:
        message = f"{subject}: {message}"
        if error.code == "too_long":
            message = f"{message.rstrip('.')}; submit it as documents= to have it cut into chunks"
    return Failed(
        error.code,
        message,
        retryable=error.retryable,
        retry_after=error.retry_after,
        served=served,
    )


def _texts_plan(job: Job, texts: Any) -> TextsPlan:
    if not isinstance(texts, list) or not texts:
        raise BadPayload("texts is not a list of at least one")
    for place, text in enumerate(texts):
        fault = _text_fault(text)
        if fault is not None:
            raise BadPayload(f"text {place}: {fault[1]}")
    match job.payload.get("input", "document"):
        case "document":
            return TextsPlan(job, "document", texts)
        case "query":
            return TextsPlan(job, "query", texts)
        case _:
            raise BadPayload("input is neither document nor query")


def _document(value: Any, ref: DocumentRef) -> PlannedDocument:
    if not isinstance(value, Mapping):
        return PlannedDocument(ref, {}, "", error=("bad_document", "it is not an object"))
    detail = {name: value.get(name) for name in ("id", "date", "metadata")}
    error = _text_fault(value.get("text")) or _detail_fault(detail)
    text = "" if error else str(value["text"])
    return PlannedDocument(ref, detail, text, superseded=not (error or ref.current), error=error)


def _detail_fault(detail: Mapping[str, Any]) -> tuple[str, str] | None:
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


def _text_fault(text: Any) -> tuple[str, str] | None:
    if not isinstance(text, str):
        return ("bad_text", "it has no text that is a string")
    if not text.strip():
        return ("empty_text", "it is empty or only white space")
    if "\0" in text:
        return ("bad_text", "it holds a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError:
        return ("bad_text", "it is not valid Unicode")
    return None
