"""What the jobs of one call have in common."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Final, Protocol

from vestry.errors import InvalidInput
from vestry.lanes import Kind, Latency, Pool, Privacy
from vestry.validation import PAYLOAD_LIMIT, check_label

# What stands, in a job of a flow, for the text of the job before it.


class _Upstream(str):
    """A text that stands for another; shows itself by name."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "UPSTREAM"


# Of Unicode's private use area, so that no text is taken for it.
UPSTREAM: Final = _Upstream("\ue000vestry: the text of the job before\ue000")
"""In a job of a flow: the text of the nearest job before it that has one. Give it wherever a text is
expected: `Embedding(documents=[Document(UPSTREAM, id="scan-7")], source="scans")`."""


RESULT_TTL_S: Final = 7 * 24 * 3600
"""Seconds a result is kept by default."""


@dataclass(frozen=True, slots=True)
class JobOptions:
    """What the jobs of one call have in common; see `Vestry.enqueue`. Validated when made."""

    owner: str
    privacy: str
    latency: str = "bulk"
    task: str | None = None
    quality: str = "adequate"
    tier: str | None = None
    run_at: dt.datetime | None = None
    deadline: dt.datetime | None = None
    max_attempts: int | None = None
    result_ttl_s: int = RESULT_TTL_S

    def __post_init__(self) -> None:
        check_label("owner", self.owner)
        # Plain strings from here on: the driver has its own ideas about enumerations.
        object.__setattr__(self, "privacy", privacy_name(self.privacy))
        if self.latency not in set(Latency):
            raise InvalidInput("latency", "must be interactive or bulk")
        object.__setattr__(self, "latency", Latency(self.latency).value)
        if self.quality not in {"adequate", "best"}:
            raise InvalidInput("quality", "must be adequate or best")
        for name in ("task", "tier"):
            if getattr(self, name) is not None:
                check_label(name, getattr(self, name))
        for name in ("run_at", "deadline"):
            moment = getattr(self, name)
            if moment is not None and (
                not isinstance(moment, dt.datetime) or moment.utcoffset() is None
            ):
                raise InvalidInput(name, "must be a datetime with a time zone")
        if self.max_attempts is not None and not 1 <= self.max_attempts <= 1000:  # noqa: PLR2004
            raise InvalidInput("max_attempts", "must be 1 to 1000")
        if not 0 < self.result_ttl_s < 2**31:
            raise InvalidInput("result_ttl_s", "must be a positive number of seconds")

    @property
    def private(self) -> bool:
        """Whether payloads are sealed."""
        return self.privacy == Privacy.PRIVATE.value


def privacy_name(privacy: object) -> str:
    """`private` or `shareable`, or `InvalidInput`: it is never guessed."""
    if privacy not in set(Privacy):
        raise InvalidInput("privacy", "must be given: private or shareable")
    return Privacy(str(privacy)).value


class Digest(Protocol):
    """`OwnerKey.digest` for private jobs, `plain_digest` for shareable ones."""

    def __call__(self, purpose: str, data: bytes, /) -> bytes:
        """32 bytes, the same for equal data and purpose."""
        ...


@dataclass(frozen=True, slots=True)
class Prepared:
    """A job as it is enqueued, its payload still in the clear.

    Attributes:
        payload: compact JSON in UTF-8.
        pool: where it runs; None leaves it to the published routes.
        documents: source and external hash of each document, in the payload's order.
        cost: its weight in fair queueing, in units of COST_BYTES.
        blobs: files by name, kept apart from the payload.
        sources: collections that it reads.
    """

    kind: Kind
    pool: Pool | None
    model: str | None
    payload: bytes
    cost: int
    keep_payload: bool
    documents: tuple[tuple[str, bytes], ...] = ()
    blobs: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    sources: tuple[str, ...] = ()


class JobRequest(Protocol):
    """Any of the job classes."""

    kind: ClassVar[Kind]

    def prepare(self, digest: Digest, payload_limit: int = PAYLOAD_LIMIT) -> Prepared:
        """Serialise. Raises `InvalidInput` where the job cannot be enqueued."""
        ...


COST_BYTES: Final = 1024
"""A job costs 1 in fair queueing, and 1 more for each of these many bytes of text."""
