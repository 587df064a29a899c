"""References, states and typed results of jobs."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from vestry.errors import InvalidInput
from vestry.jobs.classification import ClassificationResult
from vestry.jobs.embedding import EmbeddingResult, IndexResult
from vestry.jobs.generation import GenerationResult
from vestry.jobs.ocr import OcrResult
from vestry.jobs.rerank import RerankResult


class State(StrEnum):
    """The state of a job, as stored in `jobs.state`; equal to the plain string."""

    WAITING = "waiting"
    """Starts after its parent has succeeded."""
    QUEUED = "queued"
    """Ready to run from `run_at` on. A broker message is not part of the state."""
    RUNNING = "running"
    """Held by a lease."""
    SUCCEEDED = "succeeded"
    DEAD = "dead"
    """Out of attempts, or failed in a way that another attempt does not repair."""
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    """The deadline passed before the job finished."""
    SUPERSEDED = "superseded"
    """Its documents were enqueued again or deleted while it ran; none of its effects were stored."""


TERMINAL: Final[frozenset[State]] = frozenset(
    {State.SUCCEEDED, State.DEAD, State.CANCELLED, State.EXPIRED, State.SUPERSEDED}
)
"""States that a job never leaves."""

Result = (
    EmbeddingResult
    | IndexResult
    | ClassificationResult
    | OcrResult
    | GenerationResult
    | RerankResult
)


def parse_result(kind: str, body: Mapping[str, Any]) -> Result:
    """The typed result of a job, from its kind and stored JSON."""
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
    raise InvalidInput("kind", "is not supported by this version of the library; upgrade it")


@dataclass(frozen=True, slots=True)
class JobRef:
    """An enqueued job.

    Attributes:
        id: its id in the library, in Celery and Flower, and in logs.
        created: False if an earlier call created it: same idempotency key and content, or replay.
        then: its followers, in the order of its `Flow`.
    """

    id: UUID
    created: bool
    then: tuple[JobRef, ...] = ()


@dataclass(frozen=True, slots=True)
class JobStatus:
    """The state of a job.

    Attributes:
        error: code and message of the last failure, content-free.
        attempt: number of attempts started.
        degraded: another model than the intended one served it.
        parent: the job that it follows in its flow.
        root: the first job of its flow, itself for that job; None outside of flows.
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
        return self.state in TERMINAL
