"""Shared by all kinds of jobs: options of an enqueue, the prepared job, the upstream placeholder."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import ClassVar, Final, Protocol, Required, Self, TypedDict

from vestry.errors import InvalidInput
from vestry.lanes import Kind, Latency, Pool, Privacy
from vestry.validation import PAYLOAD_LIMIT, check_integer, check_label


class _Upstream(str):
    """A placeholder for a text; its repr is its name."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "UPSTREAM"


# From Unicode's private use area, so that no real text equals it.
UPSTREAM: Final = _Upstream("\ue000vestry: the text of the job before\ue000")
"""In a job of a flow: the text of the nearest job before it that has one. Pass it where a text is
expected: `Embedding(documents=[Document(UPSTREAM, id="scan-7")], source="scans")`."""

RESULT_TTL_S: Final = 7 * 24 * 3600
"""Seconds a result is kept by default."""
COST_BYTES: Final = 1024
"""Bytes of text that add 1 to a job's cost in fair queueing, which is 1 for an empty text."""
_MAX_ATTEMPTS_LIMIT: Final = 1000


class EnqueueOptions(TypedDict, total=False):
    """Keywords of `Vestry.enqueue` and `enqueue_many`, for all jobs of the call.

    Attributes:
        owner: required; opaque id of the content's owner, 1 to 200 characters, stored in the clear.
        privacy: required; `private` (own hardware only) or `shareable` (a cloud model may read it).
        latency: `bulk` (default), or `interactive` if a user waits for the result.
        task: the purpose of the request, an input of routing.
        quality: `adequate` (default) or `best`.
        tier: the user's tier, an input of routing.
        run_at: the earliest time to run, with a time zone.
        deadline: the job expires unless it is finished by this time, with a time zone.
        max_attempts: attempts before the job is dead, 1 to 1000; 5 by default.
        result_ttl_s: seconds that the result is kept, 7 days by default.
    """

    owner: Required[str]
    privacy: Required[str]
    latency: str
    task: str | None
    quality: str
    tier: str | None
    run_at: dt.datetime | None
    deadline: dt.datetime | None
    max_attempts: int | None
    result_ttl_s: int


@dataclass(frozen=True, slots=True)
class JobOptions:
    """`EnqueueOptions`, validated."""

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

    @classmethod
    def from_keywords(cls, function: str, others: Sequence[str], keywords: EnqueueOptions) -> Self:
        """The options of one call.

        Args:
            function: name of the called function.
            others: its keywords that are no options, for the error text.
            keywords: the options.

        Raises:
            TypeError: an option is unknown or missing.
            InvalidInput: a value cannot be used.
        """
        names = {option.name: option.default is MISSING for option in fields(cls)}
        unknown = [name for name in keywords if name not in names]
        if unknown:
            allowed = ", ".join([*names, *others])
            raise TypeError(
                f"{function}() got an unexpected keyword argument {unknown[0]!r}; it takes {allowed}"
            )
        missing = [name for name, required in names.items() if required and name not in keywords]
        if missing:
            raise TypeError(f"{function}() requires the keyword argument {' and '.join(missing)}")
        return cls(**keywords)

    def __post_init__(self) -> None:
        check_label("owner", self.owner)
        # Plain strings from here on: psycopg adapts enumerations in its own way.
        object.__setattr__(self, "privacy", privacy_name(self.privacy))
        if not isinstance(self.latency, str) or self.latency not in set(Latency):
            raise InvalidInput("latency", "must be interactive or bulk")
        object.__setattr__(self, "latency", Latency(self.latency).value)
        if not isinstance(self.quality, str) or self.quality not in {"adequate", "best"}:
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
        if self.max_attempts is not None:
            check_integer("max_attempts", self.max_attempts, _MAX_ATTEMPTS_LIMIT)
        check_integer("result_ttl_s", self.result_ttl_s, 2**31 - 1, "a whole number of seconds")

    @property
    def private(self) -> bool:
        """Whether payloads are sealed."""
        return self.privacy == Privacy.PRIVATE.value


def privacy_name(privacy: object) -> str:
    """`private` or `shareable`; there is no default.

    Raises:
        InvalidInput: it is neither.
    """
    if not isinstance(privacy, str) or privacy not in set(Privacy):
        raise InvalidInput("privacy", "must be given: private or shareable")
    return Privacy(str(privacy)).value


class Digest(Protocol):
    """Content digest: `OwnerKey.digest` for private jobs, `plain_digest` for shareable ones."""

    def __call__(self, purpose: str, data: bytes, /) -> bytes:
        """32 bytes, the same for equal data and purpose."""
        ...


@dataclass(frozen=True, slots=True)
class Prepared:
    """A serialised job, before its payload is sealed.

    Attributes:
        payload: compact JSON in UTF-8.
        pool: the pool it runs in; None leaves it to the published routes.
        cost: its cost in fair queueing: 1, and 1 more for each COST_BYTES of text.
        documents: source and external hash of each document, in the payload's order.
        blobs: files by name, stored apart from the payload.
        sources: document sources that it reads.
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
    """Interface of the job classes."""

    kind: ClassVar[Kind]

    def prepare(self, digest: Digest, payload_limit: int = PAYLOAD_LIMIT) -> Prepared:
        """Serialise the job.

        Raises:
            InvalidInput: the job cannot be enqueued.
        """
        ...
