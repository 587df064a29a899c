"""What a handler of one kind gets and gives back. No Celery, no SQL.

A handler is a function `run(batch, context) -> outcomes`, one outcome a job, in the batch's order.
It must not raise for one job's fault: a bad job gets `Failed` and its neighbours their results. What
it raises anyway is taken as a fault of the whole batch, which is then halved until that job is alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import UUID

from inference.routing.policy import RoutingRequest
from tasks.grounding import Passage
from vestry.db.receipts import Served
from vestry.jobs.base import Digest
from vestry.jobs.generation import Grounding
from vestry.lanes import Kind, Pool


class BadPayload(Exception):
    """The payload is not what the kind takes; the message names the field and nothing of it."""


@dataclass(frozen=True, slots=True)
class DocumentRef:
    """The document a job's `ordinal`-th input is, at the generation the job was enqueued for."""

    document_id: UUID
    generation: int
    # What is stored now, as read after the claim; None where nothing is.
    indexed_hash: bytes | None
    indexed_space: str | None
    current: bool
    """False when the document moved on since: embedding it would be work for nothing."""


@dataclass(frozen=True, slots=True)
class Job:
    """One claimed job with its payload opened.

    `payload` is the JSON object the producer library made; its keys depend on the kind.
    """

    id: UUID
    kind: Kind
    task: str | None
    owner: str
    privacy: str
    latency: str
    attempt: int
    model: str | None
    payload: Mapping[str, Any] = field(repr=False)
    documents: tuple[DocumentRef, ...] = ()
    quality: str = "adequate"
    tier: str | None = None
    blobs: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    """Files given with the job, by name, opened."""
    tried_models: Mapping[str, str] = field(default_factory=dict)
    """Models that this attempt tried in another pool, with why they did not serve."""

    @property
    def routing_request(self) -> RoutingRequest:
        """What routing looks at."""
        return RoutingRequest(
            self.kind, self.task, self.privacy, self.latency, self.tier, self.quality, self.model,
            tuple(sorted(self.tried_models.items())),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Chunk:
    """One stored piece of a document; `start` and `end` are character offsets into its text."""

    ordinal: int
    start: int
    end: int
    text: str = field(repr=False)
    """Always given (it is hashed); stored only where the job keeps text."""
    vector: Sequence[float] = field(repr=False)


@dataclass(frozen=True, slots=True)
class IndexDocument:
    """Effect: replace a document's chunks and vectors, if its generation still stands."""

    document_id: UUID
    generation: int
    source: str
    space_id: int
    content_hash: bytes
    detail: Mapping[str, Any] = field(repr=False)
    """External id, date, metadata: sealed in private lanes."""
    chunks: Sequence[Chunk]
    keep_text: bool


@dataclass(frozen=True, slots=True)
class ConfirmDocument:
    """Effect: the stored chunks are already of this content; only move indexed_generation on."""

    document_id: UUID
    generation: int


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The job's result (a JSON object) and its effects, committed together or not at all.

    `result["superseded"]` and the like are filled in by the finishing transaction, which alone
    knows whether an effect still stood.
    """

    result: dict[str, Any] = field(repr=False)
    effects: tuple[IndexDocument | ConfirmDocument, ...] = ()
    served: Served | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """The attempt failed. `code` and `message` are content-free: they are stored in the clear."""

    code: str
    message: str
    retryable: bool = False
    retry_after: float | None = None
    uncounted: bool = False
    """Nobody's fault: tried again, however often, without spending an attempt."""
    served: Served | None = None


@dataclass(frozen=True, slots=True)
class Rerouted:
    """The job belongs into another pool: it goes there, and no attempt is spent."""

    pool: Pool
    reason: str
    served: Served | None = None
    tried_models: Mapping[str, str] = field(default_factory=dict)
    """Models that were tried, with why they did not serve: the other pool does not send it back."""


Outcome = Succeeded | Failed | Rerouted


class CancellationSource(Protocol):
    """What a long handler asks between sub-batches."""

    def is_lost(self, job_id: UUID) -> bool:
        """The job was cancelled, expired or handed back: its effects would be refused."""
        ...


class PassageSearch(Protocol):
    """The documents that a job may be grounded in."""

    def passages(self, job: Job, grounding: Grounding) -> Sequence[Passage]:
        """The best passages of the job's owner, and of the shareable sources named.

        A shareable job is never shown a private passage: its process cannot read any.

        Raises:
            InferenceError: the query cannot be embedded.
        """
        ...


class NoPassageSearch:
    """For handlers that are run without a database."""

    def passages(self, job: Job, grounding: Grounding) -> Sequence[Passage]:
        """None."""
        del job, grounding
        return ()


@dataclass(frozen=True, slots=True)
class Context:
    """What a handler may use besides its arguments."""

    cancellation: CancellationSource
    digest: Mapping[str, Digest] = field(default_factory=dict)
    """Owner to the content digest of that owner (HMAC where private)."""
    passage_search: PassageSearch = field(default_factory=NoPassageSearch)


class Handler(Protocol):
    """A kind's entry point."""

    def __call__(self, batch: Sequence[Job], context: Context, /) -> Sequence[Outcome]:
        """One outcome a job, in order."""
        ...
