"""The contract between the worker and the handlers of the kinds. No Celery, no SQL.

A handler is a callable `(batch, context) -> outcomes`, one outcome per job, in the batch's order. It
must not raise for one faulty job: that job gets `Failed`, the others their results. An exception counts
as a fault of the whole batch, which is then bisected until the faulty job is isolated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

from inference.errors import InferenceError, NoBackendAvailable
from inference.routing.policy import Candidate, RoutingRequest
from inference.routing.router import RerouteRequired, RoutedResult
from tasks.grounding import Passage
from vestry.db.receipts import Served
from vestry.jobs.base import Digest
from vestry.jobs.generation import Grounding
from vestry.lanes import Kind, Pool

if TYPE_CHECKING:
    from models.documents import DocumentState


class BadPayload(Exception):
    """The payload is invalid for its kind; the message names the field and nothing of its content."""


def text_of(name: str, value: Any) -> str:
    """A payload's field that a model reads as text.

    Raises:
        BadPayload: it is not a text, is empty, or is not valid Unicode.
    """
    if not isinstance(value, str) or not value.strip():
        raise BadPayload(f"{name} is not a text, or is empty")
    if "\0" in value:
        raise BadPayload(f"{name} holds a NUL character")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadPayload(f"{name} is not valid Unicode") from None
    return value


@dataclass(frozen=True, slots=True)
class Job:
    """One claimed job with its payload opened.

    Attributes:
        payload: the JSON object that the producer library wrote; its keys depend on the kind.
        documents: the document of each input, in order, as read after the claim.
        blobs: files of the job by name, opened.
        tried_models: models that this attempt tried in another pool, with why they did not serve.
    """

    id: UUID
    kind: Kind
    task: str | None
    owner: str
    privacy: str
    latency: str
    model: str | None
    payload: Mapping[str, Any] = field(repr=False)
    documents: tuple[DocumentState, ...] = ()
    quality: str = "adequate"
    tier: str | None = None
    blobs: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    tried_models: Mapping[str, str] = field(default_factory=dict)

    @property
    def routing_request(self) -> RoutingRequest:
        """The fields that routing depends on."""
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
    """Always set (it is hashed); stored only if the job keeps text."""
    vector: Sequence[float] = field(repr=False)


@dataclass(frozen=True, slots=True)
class IndexDocument:
    """Effect: replace a document's chunks and vectors, if its generation is still the current one."""

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
    """Effect: the stored chunks already have this content; only indexed_generation is raised."""

    document_id: UUID
    generation: int


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The job's result (a JSON object) and its effects, committed together or not at all.

    The finishing transaction corrects counts such as `result["superseded"]`: it decides which effects
    apply.
    """

    result: dict[str, Any] = field(repr=False)
    effects: tuple[IndexDocument | ConfirmDocument, ...] = ()
    served: Served | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """The attempt failed.

    Attributes:
        code: short stable name.
        message: content-free, since it is stored in the clear.
        retryable: a later attempt may succeed.
        retry_after: least seconds until then.
        uncounted: the job waits for a backend; the retry spends no attempt.
        served: the calls, if they were paid for nevertheless.
    """

    code: str
    message: str
    retryable: bool = False
    retry_after: float | None = None
    uncounted: bool = False
    served: Served | None = None


@dataclass(frozen=True, slots=True)
class Rerouted:
    """The job moves to another pool; no attempt is spent.

    Attributes:
        tried_models: with why they did not serve; the other pool does not route back to them.
    """

    pool: Pool
    reason: str
    served: Served | None = None
    tried_models: Mapping[str, str] = field(default_factory=dict)


Outcome = Succeeded | Failed | Rerouted


class CancellationSource(Protocol):
    """Cancellation check of a long handler, between sub-batches."""

    def is_lost(self, job_id: UUID) -> bool:
        """Whether the job was cancelled, expired or released: its effects would be refused."""
        ...


class PassageSearch(Protocol):
    """Search in the documents that a job's answer may be grounded in."""

    def passages(self, job: Job, grounding: Grounding) -> Sequence[Passage]:
        """The best passages of the job's owner, and of the shareable sources named.

        A shareable job gets no private passage: its process cannot read any.

        Raises:
            InferenceError: the query cannot be embedded.
        """
        ...


class NoPassageSearch:
    """A `PassageSearch` for handlers that run without a database."""

    def passages(self, job: Job, grounding: Grounding) -> Sequence[Passage]:
        """Returns no passages."""
        del job, grounding
        return ()


@dataclass(frozen=True, slots=True)
class Context:
    """Services for a handler, besides its batch.

    Attributes:
        digest: content digest by owner (HMAC if private).
    """

    cancellation: CancellationSource
    digest: Mapping[str, Digest] = field(default_factory=dict)
    passage_search: PassageSearch = field(default_factory=NoPassageSearch)


class Handler(Protocol):
    """A kind's entry point."""

    def __call__(self, batch: Sequence[Job], context: Context, /) -> Sequence[Outcome]:
        """One outcome per job, in order."""
        ...


def served_of(
    result: RoutedResult[Any], input_tokens: int | None = None, output_tokens: int | None = None
) -> Served:
    """The receipt's entry for a call that succeeded."""
    model, intended = result.served.model, result.intended
    price = model.price
    return Served(
        backend=model.backend,
        model=model.name,
        locality=result.served.locality,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        intended_backend=intended.model.backend,
        intended_model=intended.model.name,
        degraded=result.degraded,
        reason=result.reason,
        cost=None if price is None else price.of(input_tokens, output_tokens),
        policy=result.policy,
    )


def outcome_of_error(
    error: InferenceError | RerouteRequired, subject: str | None = None
) -> Failed | Rerouted:
    """The outcome of a job whose request was not served.

    Args:
        error: raised by the Router.
        subject: the part of the job that it is about, such as `text 3`; no content.
    """
    if isinstance(error, RerouteRequired):
        served = None if error.error is None else _paid_calls(error.error)
        return Rerouted(error.pool, error.reason, served, error.tried_models)
    return failure_of(error, subject)


def failure_of(error: InferenceError, subject: str | None = None) -> Failed:
    """An error as a job's failure; see `outcome_of_error`."""
    message = str(error) if subject is None else f"{subject}: {error}"
    return Failed(
        error.code,
        message,
        retryable=error.retryable,
        retry_after=error.retry_after,
        uncounted=isinstance(error, NoBackendAvailable),
        served=_paid_calls(error),
    )


def _paid_calls(error: InferenceError) -> Served | None:
    """The receipt's entry for calls that were answered and paid for, but did not serve the job."""
    candidate: Candidate | None = error.served_by
    if candidate is None or error.usage is None:
        return None
    model, price = candidate.model, candidate.model.price
    return Served(
        backend=model.backend,
        model=model.name,
        locality=candidate.locality,
        input_tokens=error.usage[0],
        output_tokens=error.usage[1],
        cost=None if price is None else price.of(*error.usage),
    )


def cancelled_outcome() -> Failed:
    """The outcome of a job whose effects would be refused."""
    return Failed("abandoned", "the job was cancelled or released while it ran", retryable=True)
