"""What a producer gets back: references, states and typed results."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal
from uuid import UUID

from vestry.classification_results import ClassificationResult
from vestry.errors import InvalidInput
from vestry.generation_results import GenerationResult
from vestry.ocr_results import OcrResult
from vestry.rerank_results import RerankResult

State = Literal[
    "waiting", "queued", "running", "succeeded", "dead", "cancelled", "expired", "superseded"
]
FINAL_STATES: Final = frozenset({"succeeded", "dead", "cancelled", "expired", "superseded"})


@dataclass(frozen=True, slots=True)
class EmbeddingResult:
    """Vectors in the order of the texts, each of the space's dimension.

    Attributes:
        space: name of the embedding space; only vectors of one space may be compared.
    """

    vectors: tuple[tuple[float, ...], ...] = field(repr=False)
    space: str

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> EmbeddingResult:
        """From the worker's `{"vectors", "space"}`."""
        return cls(tuple(tuple(map(float, row)) for row in body["vectors"]), str(body["space"]))


@dataclass(frozen=True, slots=True)
class FailedDocument:
    """A document of the job that could not be indexed; its neighbours were.

    Attributes:
        index: its place in the job's documents, from 0.
        code: short content-free code.
        message: one content-free sentence.
    """

    index: int
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class IndexResult:
    """What indexing documents did.

    Attributes:
        documents: how many were given.
        chunks: pieces that this job embedded and stored.
        embedded: documents that this job embedded.
        unchanged: documents whose stored chunks were already of this content.
        superseded: documents enqueued again or deleted meanwhile; left alone.
        failed: those that could not be indexed.
        space: the embedding space.
    """

    documents: int
    chunks: int
    embedded: int
    unchanged: int
    superseded: int
    failed: tuple[FailedDocument, ...]
    space: str | None

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> IndexResult:
        """From the worker's JSON, whose keys are the attributes."""
        return cls(
            documents=int(body["documents"]),
            chunks=int(body["chunks"]),
            embedded=int(body["embedded"]),
            unchanged=int(body["unchanged"]),
            superseded=int(body.get("superseded", 0)),
            failed=tuple(
                FailedDocument(int(row["index"]), str(row["code"]), str(row["message"]))
                for row in body.get("failed", ())
            ),
            space=body.get("space"),
        )


Result = (
    EmbeddingResult
    | IndexResult
    | ClassificationResult
    | OcrResult
    | GenerationResult
    | RerankResult
)


def parse_result(kind: str, body: Mapping[str, Any]) -> Result:
    """The typed result of a job of a kind from its stored JSON."""
    if kind == "embedding":
        if "vectors" in body:
            return EmbeddingResult.from_json(body)
        return IndexResult.from_json(body)
    if kind == "generation":
        return GenerationResult.from_json(body)
    if kind == "ocr":
        return OcrResult.from_json(body)
    if kind == "classification":
        return ClassificationResult.from_json(body)
    if kind == "rerank":
        return RerankResult.from_json(body)
    raise InvalidInput("kind", "this version cannot read results of that kind")


@dataclass(frozen=True, slots=True)
class JobRef:
    """An enqueued job.

    Attributes:
        id: its id everywhere: here, in Celery and Flower, in logs.
        created: False when an earlier job with the same idempotency key and content stands for it.
        then: the jobs that follow on it, as its `Flow` says.
    """

    id: UUID
    created: bool
    then: tuple[JobRef, ...] = ()


@dataclass(frozen=True, slots=True)
class JobStatus:
    """Where a job stands.

    Attributes:
        error: code and message of the last failure, content-free.
        attempt: how often it was started.
        degraded: it was served by another model than the one intended.
        parent: the job that it follows on in its flow.
        root: the first job of its flow; itself for that one, None outside of flows.
    """

    job: UUID
    kind: str
    state: State
    owner: str
    privacy: str
    latency: str
    lane: str
    attempt: int
    degraded: bool
    error: tuple[str, str] | None
    created_at: dt.datetime
    run_at: dt.datetime
    started_at: dt.datetime | None
    finished_at: dt.datetime | None
    parent: UUID | None = None
    root: UUID | None = None

    @property
    def finished(self) -> bool:
        """Whether the state is final."""
        return self.state in FINAL_STATES
