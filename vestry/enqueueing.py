"""Turns jobs into calls of `vestry.enqueue_jobs_v1`: hashing, sealing, batching. No I/O."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from vestry.checks import PAYLOAD_LIMIT, check_label
from vestry.errors import IdempotencyConflict, InvalidInput, UnknownKey
from vestry.ids import uuid7
from vestry.jobs import Digest, JobRequest, Prepared
from vestry.lanes import Latency, Privacy
from vestry.owner_keys import OwnerKeys
from vestry.results import JobRef
from vestry.sealing import PAYLOAD, OwnerKey, plain_digest
from vestry.steps import Query, Steps

BATCH_JOBS: Final = 1000
BATCH_BYTES: Final = 4 * 1024 * 1024
RESULT_TTL_S: Final = 7 * 24 * 3600
"""Seconds a result is kept by default."""

_ENQUEUE: Final = """SELECT ord, job_id, status FROM vestry.enqueue_jobs_v1(
  %s::text, %s::text, %s::text, %s::text, %s::text, %s::text,
  %b::timestamptz, %b::timestamptz, %b::integer,
  %b::uuid[], %b::text[], %b::text[], %b::text[], %b::integer[],
  %b::boolean[], %b::integer[],
  %b::bytea[], %b::bytea[],
  %b::uuid, %b::bytea[], %b::text[],
  %b::integer[], %b::integer[], %b::text[], %b::bytea[])"""


@dataclass(frozen=True, slots=True)
class Options:
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


@dataclass(slots=True)
class Batch:
    """Jobs of one owner on their way into one call of the SQL function."""

    options: Options
    digest: Digest
    key: OwnerKey | None
    payload_limit: int = PAYLOAD_LIMIT
    _jobs: list[Prepared] = field(default_factory=list)
    _hashes: list[tuple[bytes, bytes] | None] = field(default_factory=list)
    _documents: set[tuple[str, bytes]] = field(default_factory=set)
    _bytes: int = 0

    def __len__(self) -> int:
        return len(self._jobs)

    def prepare(self, job: JobRequest) -> Prepared:
        """Serialise a job for this batch's owner."""
        if not callable(getattr(job, "prepare", None)):
            raise InvalidInput("job", "is not a job, such as Embedding(texts=[…])")
        return job.prepare(self.digest, self.payload_limit)

    def takes(self, prepared: Prepared) -> bool:
        """Whether there is room. One call cannot index the same document twice."""
        return (
            len(self._jobs) < BATCH_JOBS
            and (not self._jobs or self._bytes + len(prepared.payload) <= BATCH_BYTES)
            and self._documents.isdisjoint(prepared.documents)
        )

    def add(self, prepared: Prepared, idempotency_key: str | None = None) -> None:
        """Take a job up."""
        self._jobs.append(prepared)
        self._documents.update(prepared.documents)
        self._bytes += len(prepared.payload)
        if idempotency_key is None:
            self._hashes.append(None)
        else:
            check_label("idempotency_key", idempotency_key)
            scope = _bound(self.options)
            self._hashes.append(
                (
                    self.digest("idempotency-key", scope + idempotency_key.encode()),
                    self.digest("idempotent-content", scope + _meaning(self.options, prepared)),
                )
            )

    def flush(self) -> Steps[list[JobRef]]:
        """Enqueue what was taken up, and be empty again.

        Raises:
            IdempotencyConflict: nothing was enqueued; the transaction is still usable.
        """
        if not self._jobs:
            return []
        ids = [uuid7() for _ in self._jobs]
        rows = yield Query(_ENQUEUE, self._arguments(ids), prepare=True)
        conflicts = tuple(row[1] for row in rows if row[2] == "conflict")
        if conflicts:
            raise IdempotencyConflict(conflicts)
        self._jobs, self._hashes, self._documents, self._bytes = [], [], set(), 0
        return [JobRef(job_id, status == "created") for _, job_id, status in sorted(rows)]

    def _arguments(self, ids: Sequence[UUID]) -> tuple[Any, ...]:
        options, jobs = self.options, self._jobs
        documents = [
            (number, ordinal, source, external)
            for number, job in enumerate(jobs, 1)
            for ordinal, (source, external) in enumerate(job.documents)
        ]
        sealed = texts = None
        if self.key is not None:
            key = self.key
            sealed = [
                key.seal(PAYLOAD, job_id, job.payload)
                for job_id, job in zip(ids, jobs, strict=True)
            ]
        else:
            texts = [job.payload.decode() for job in jobs]
        return (
            options.owner,
            options.privacy,
            options.latency,
            options.task,
            options.quality,
            options.tier,
            options.run_at,
            options.deadline,
            options.max_attempts,
            list(ids),
            [job.kind for job in jobs],
            [job.pool.value for job in jobs],
            _column(job.model for job in jobs),
            [job.units for job in jobs],
            [job.keep_payload for job in jobs],
            [options.result_ttl_s] * len(jobs),
            _column(pair and pair[0] for pair in self._hashes),
            _column(pair and pair[1] for pair in self._hashes),
            None if self.key is None else self.key.key_id,
            sealed,
            texts,
            _column(row[0] for row in documents),
            _column(row[1] for row in documents),
            _column(row[2] for row in documents),
            _column(row[3] for row in documents),
        )


class KeyedJobs:
    """Jobs, each with its idempotency key or None, and the place of the one that is in hand."""

    def __init__(
        self,
        jobs: Iterable[JobRequest] | AsyncIterable[JobRequest],
        keys: Iterable[str | None] | None = None,
    ) -> None:
        self._jobs = jobs
        self._keys = None if keys is None else iter(keys)
        self._place = -1

    def __iter__(self) -> Iterator[tuple[JobRequest, str | None]]:
        if not isinstance(self._jobs, Iterable):
            raise InvalidInput("jobs", "are not iterable")
        for job in self._jobs:
            yield job, self.key()
        self.spent()

    async def __aiter__(self) -> AsyncIterator[tuple[JobRequest, str | None]]:
        if not isinstance(self._jobs, AsyncIterable):
            for pair in self:
                yield pair
            return
        async for job in self._jobs:
            yield job, self.key()
        self.spent()

    def key(self) -> str | None:
        """The key of the next job."""
        self._place += 1
        if self._keys is None:
            return None
        try:
            return next(self._keys)
        except StopIteration:
            raise InvalidInput("idempotency_keys", "are fewer than the jobs") from None

    def spent(self) -> None:
        """Every key had its job."""
        if self._keys is not None and next(self._keys, self) is not self:
            raise InvalidInput("idempotency_keys", "are more than the jobs")

    @contextlib.contextmanager
    def located(self) -> Iterator[None]:
        """A fault of the job in hand names its place."""
        try:
            yield
        except InvalidInput as error:
            raise error.within(f"jobs[{self._place}]") from None


def new_batch(options: Options, keys: OwnerKeys, payload_limit: int) -> Steps[Batch]:
    """An empty batch with the owner's key, made in this transaction if need be."""
    if not options.private:
        return Batch(options, plain_digest, None, payload_limit)
    key = yield from keys.ensure(options.owner)
    return Batch(options, key.digest, key, payload_limit)


def flush(batch: Batch, keys: OwnerKeys) -> Steps[list[JobRef]]:
    """`Batch.flush`; a key the database no longer knows is not used again."""
    try:
        return (yield from batch.flush())
    except UnknownKey:
        keys.drop(batch.options.owner)
        raise


def enqueue_one(
    job: JobRequest, options: Options, idempotency_key: str | None, keys: OwnerKeys, limit: int
) -> Steps[JobRef]:
    """One job in the current transaction."""
    batch = yield from new_batch(options, keys, limit)
    batch.add(batch.prepare(job), idempotency_key)
    return (yield from flush(batch, keys))[0]


def _column(values: Iterable[Any]) -> list[Any] | None:
    """An array; NULL for one of only NULLs, whose type the driver could not tell."""
    column = list(values)
    return column if any(value is not None for value in column) else None


def _bound(options: Options) -> bytes:
    """Ties a plain hash to owner and privacy, so that hashes of two owners never compare equal."""
    return json.dumps([options.owner, options.privacy]).encode()


def _meaning(options: Options, prepared: Prepared) -> bytes:
    """What a job asks for. When it is to run is not part of it: a retried call may say later."""
    head = [
        prepared.kind,
        prepared.model,
        prepared.keep_payload,
        options.task,
        options.quality,
        options.tier,
    ]
    return json.dumps(head).encode() + prepared.payload
