"""Enqueue: batches of one owner's jobs, hashed, sealed and passed to SQL with their files. No I/O."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final, TypeAlias
from uuid import UUID

from vestry.crypto.envelope import PAYLOAD, OwnerKey, blob_field, plain_digest
from vestry.crypto.owner_keys import OwnerKeys
from vestry.db.operations import Operation, Query, column, uuid7
from vestry.errors import IdempotencyConflict, InvalidInput, PayloadTooLarge, UnknownKey
from vestry.jobs.base import Digest, JobOptions, JobRequest
from vestry.jobs.flow import Flow, Step, steps_of
from vestry.jobs.results import JobRef
from vestry.validation import PAYLOAD_LIMIT, check_label

BATCH_JOBS: Final = 1000
BATCH_BYTES: Final = 4 * 1024 * 1024
BLOB_PART: Final = 1024 * 1024
"""Most bytes of a file in one row."""
BLOB_LIMIT: Final = 64 * BLOB_PART
"""Most bytes of one file."""
_PARTS_PER_CALL: Final = 8

_ENQUEUE: Final = """SELECT ord, job_id, status FROM vestry.enqueue_jobs_v1(
  p_owner => %(owner)s::text, p_privacy => %(privacy)s::text, p_latency => %(latency)s::text,
  p_ids => %(ids)b::uuid[], p_kinds => %(kinds)b::text[], p_costs => %(costs)b::integer[],
  p_keep_payload => %(keep_payload)b::boolean[], p_result_ttl_s => %(result_ttl_s)b::integer[],
  p_pools => %(pools)b::text[], p_models => %(models)b::text[], p_tasks => %(tasks)b::text[],
  p_parents => %(parents)b::integer[],
  p_key_hashes => %(key_hashes)b::bytea[], p_content_hashes => %(content_hashes)b::bytea[],
  p_sealed => %(sealed)b::bytea[], p_texts => %(texts)b::text[],
  p_key_id => %(key_id)b::uuid, p_quality => %(quality)s::text, p_tier => %(tier)s::text,
  p_run_at => %(run_at)b::timestamptz, p_deadline => %(deadline)b::timestamptz,
  p_max_attempts => %(max_attempts)b::integer,
  p_doc_jobs => %(doc_jobs)b::integer[], p_doc_ordinals => %(doc_ordinals)b::integer[],
  p_doc_sources => %(doc_sources)b::text[], p_doc_hashes => %(doc_hashes)b::bytea[])"""
STORE_BLOBS: Final = """SELECT vestry.store_blobs_v1(
  %s::text, %s::text, %b::uuid, %b::uuid[], %b::text[], %b::integer[], %b::bytea[])"""
_PRIVATE_SOURCES: Final = "SELECT vestry.private_sources_v1(%s::text, %b::text[])"


@dataclass(slots=True)
class EnqueueBatch:
    """Jobs of one owner, collected for one call of the SQL function."""

    options: JobOptions
    digest: Digest
    key: OwnerKey | None
    payload_limit: int = PAYLOAD_LIMIT
    _steps: list[Step] = field(default_factory=list)
    _parents: list[int | None] = field(default_factory=list)
    _hashes: list[tuple[bytes, bytes] | None] = field(default_factory=list)
    _documents: set[tuple[str, bytes]] = field(default_factory=set)
    _bytes: int = 0

    def __len__(self) -> int:
        return len(self._steps)

    def prepare(self, job: JobRequest | Flow) -> list[Step]:
        """Serialise a job and its followers for this batch's owner."""
        return steps_of(job, self.digest, self.payload_limit)

    def has_room_for(self, steps: Sequence[Step]) -> bool:
        """Whether the steps fit. One call cannot index the same document twice."""
        size = sum(map(_size, steps))
        return (
            len(self._steps) + len(steps) <= BATCH_JOBS
            and (not self._steps or self._bytes + size <= BATCH_BYTES)
            and all(self._documents.isdisjoint(step.prepared.documents) for step in steps)
        )

    def add(self, steps: Sequence[Step], idempotency_key: str | None = None) -> None:
        """Add a job and its followers.

        Raises:
            InvalidInput: the idempotency key is malformed, or the flow indexes a document twice.
            PayloadTooLarge: a file is too large.
        """
        base = len(self._steps)
        for step in steps:
            if not self._documents.isdisjoint(step.prepared.documents):
                raise InvalidInput(
                    "then", "indexes the same document twice; give the documents other ids"
                )
            self._documents.update(step.prepared.documents)
            for body in step.prepared.blobs.values():
                if len(body) > BLOB_LIMIT:
                    raise PayloadTooLarge("file", len(body), BLOB_LIMIT)
        self._steps += steps
        # The database counts from 1.
        self._parents += [None if s.parent is None else base + s.parent + 1 for s in steps]
        self._bytes += sum(map(_size, steps))
        self._hashes += [None] * len(steps)
        if idempotency_key is not None:
            check_label("idempotency_key", idempotency_key)
            scope = _scope(self.options)
            self._hashes[base] = (
                self.digest("idempotency-key", scope + idempotency_key.encode()),
                self.digest("idempotent-content", scope + _identity(self.options, steps)),
            )

    def flush(self) -> Operation[list[JobRef]]:
        """Enqueue the jobs and empty the batch; returns one reference per job or flow.

        Raises:
            IdempotencyConflict: nothing was enqueued; the transaction is still usable.
            InvalidInput: a shareable job names a private source.
        """
        if not self._steps:
            return []
        yield from self._check_sources()
        ids = _ascending(self._parents)
        rows = yield Query(_ENQUEUE, self._arguments(ids), prepare=True)
        conflicts = tuple(row[1] for row in rows if row[2] == "conflict")
        if conflicts:
            raise IdempotencyConflict(conflicts)
        enqueued = [(job_id, status == "created") for _, job_id, status in sorted(rows)]
        yield from self._store_blobs(enqueued)
        references = _nested(enqueued, self._parents)
        self._steps, self._parents, self._hashes = [], [], []
        self._documents, self._bytes = set(), 0
        return references

    def _check_sources(self) -> Operation[None]:
        """Refuse a shareable job that reads private sources: a cloud could read the passages."""
        sources = sorted({source for step in self._steps for source in step.prepared.sources})
        if not sources or self.options.private:
            return
        rows = yield Query(_PRIVATE_SOURCES, (self.options.owner, sources))
        if rows:
            raise InvalidInput(
                "grounding",
                f"source {rows[0][0]} is private: make the job private, or omit the source",
            )

    def _store_blobs(self, enqueued: Sequence[tuple[UUID, bool]]) -> Operation[None]:
        remaining = self._blob_parts(enqueued)
        while parts := list(islice(remaining, _PARTS_PER_CALL)):
            yield Query(
                STORE_BLOBS,
                (
                    self.options.owner,
                    self.options.privacy,
                    None if self.key is None else self.key.key_id,
                    [part[0] for part in parts],
                    [part[1] for part in parts],
                    [part[2] for part in parts],
                    [part[3] for part in parts],
                ),
            )

    def _blob_parts(
        self, enqueued: Sequence[tuple[UUID, bool]]
    ) -> Iterator[tuple[UUID, str, int, bytes]]:
        for step, (job_id, created) in zip(self._steps, enqueued, strict=True):
            for name, body in step.prepared.blobs.items() if created else ():
                for number, start in enumerate(range(0, max(1, len(body)), BLOB_PART)):
                    part = body[start : start + BLOB_PART]
                    if self.key is not None:
                        part = self.key.seal(blob_field(name, number), job_id, part)
                    yield job_id, name, number, part

    def _arguments(self, ids: Sequence[UUID]) -> dict[str, Any]:
        options, jobs = self.options, [step.prepared for step in self._steps]
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
        return {
            "owner": options.owner,
            "privacy": options.privacy,
            "latency": options.latency,
            "ids": list(ids),
            "kinds": [job.kind for job in jobs],
            "costs": [job.cost for job in jobs],
            "keep_payload": [job.keep_payload for job in jobs],
            "result_ttl_s": [options.result_ttl_s] * len(jobs),
            "pools": column(None if job.pool is None else job.pool.value for job in jobs),
            "models": column(job.model for job in jobs),
            "tasks": column(
                options.task if step.parent is None and step.task is None else step.task
                for step in self._steps
            ),
            "parents": column(self._parents),
            "key_hashes": column(pair and pair[0] for pair in self._hashes),
            "content_hashes": column(pair and pair[1] for pair in self._hashes),
            "sealed": sealed,
            "texts": texts,
            "key_id": None if self.key is None else self.key.key_id,
            "quality": options.quality,
            "tier": options.tier,
            "run_at": options.run_at,
            "deadline": options.deadline,
            "max_attempts": options.max_attempts,
            "doc_jobs": column(row[0] for row in documents),
            "doc_ordinals": column(row[1] for row in documents),
            "doc_sources": column(row[2] for row in documents),
            "doc_hashes": column(row[3] for row in documents),
        }


def _size(step: Step) -> int:
    prepared = step.prepared
    return len(prepared.payload) + sum(map(len, prepared.blobs.values()))


def _ascending(parents: Sequence[int | None]) -> list[UUID]:
    """Ids for all steps; those of a flow ascend, which is the order of its locks."""
    ids: list[UUID] = []
    flow: list[UUID] = []
    for parent in parents:
        if parent is None:
            ids += sorted(flow)
            flow = []
        flow.append(uuid7())
    return ids + sorted(flow)


def _nested(enqueued: Sequence[tuple[UUID, bool]], parents: Sequence[int | None]) -> list[JobRef]:
    """References of the first jobs, which hold those of their followers."""
    followers: list[list[JobRef]] = [[] for _ in enqueued]
    roots: list[JobRef] = []
    # From the last: the followers of a job come after it.
    for index in range(len(enqueued) - 1, -1, -1):
        job_id, created = enqueued[index]
        reference = JobRef(job_id, created, tuple(reversed(followers[index])))
        parent = parents[index]
        (roots if parent is None else followers[parent - 1]).append(reference)
    return roots[::-1]


def _scope(options: JobOptions) -> bytes:
    """Prefix of a plain hash: owner and privacy, so that hashes of two owners are never equal."""
    return json.dumps([options.owner, options.privacy]).encode()


def _identity(options: JobOptions, steps: Sequence[Step]) -> bytes:
    """The content of a flow, without its times: a retried call may have later ones."""
    parts: list[bytes] = []
    for step in steps:
        prepared = step.prepared
        head: list[Any] = [
            prepared.kind,
            prepared.model,
            prepared.keep_payload,
            options.task if step.parent is None and step.task is None else step.task,
            options.quality,
            options.tier,
        ]
        if step.parent is not None:
            head.append(step.parent)
        parts += [json.dumps(head).encode(), prepared.payload, *prepared.blobs.values()]
    return b"".join(parts)


Jobs: TypeAlias = Iterable[JobRequest | Flow]
"""Any iterable of jobs and flows."""
AsyncJobs: TypeAlias = Jobs | AsyncIterable[JobRequest | Flow]
"""`Jobs`, or an asynchronous iterable of them."""


class KeyedJobs:
    """Jobs, each with its idempotency key or None, and the position of the current one."""

    def __init__(self, jobs: AsyncJobs, keys: Iterable[str | None] | None = None) -> None:
        if isinstance(keys, (str, bytes)) or not isinstance(keys, Iterable | None):
            raise InvalidInput("idempotency_keys", "must be a list with one key or None per job")
        self._jobs = jobs
        self._keys = None if keys is None else iter(keys)
        self._index = -1

    def __iter__(self) -> Iterator[tuple[JobRequest | Flow, str | None]]:
        if not isinstance(self._jobs, Iterable):
            raise InvalidInput("jobs", "must be an iterable of jobs")
        for job in self._jobs:
            yield job, self.key()
        self.check_exhausted()

    async def __aiter__(self) -> AsyncIterator[tuple[JobRequest | Flow, str | None]]:
        if not isinstance(self._jobs, AsyncIterable):
            for pair in self:
                yield pair
            return
        async for job in self._jobs:
            yield job, self.key()
        self.check_exhausted()

    def key(self) -> str | None:
        """Advance to the next job; returns its key."""
        self._index += 1
        if self._keys is None:
            return None
        try:
            return next(self._keys)
        except StopIteration:
            raise InvalidInput("idempotency_keys", "has fewer keys than there are jobs") from None

    def check_exhausted(self) -> None:
        """Check that there is no further key."""
        if self._keys is not None and next(self._keys, self) is not self:
            raise InvalidInput("idempotency_keys", "has more keys than there are jobs")

    @contextlib.contextmanager
    def located(self) -> Iterator[None]:
        """Prefix faults of the current job with its position."""
        try:
            yield
        except InvalidInput as error:
            raise error.within(f"jobs[{self._index}]") from None


def new_batch(options: JobOptions, keys: OwnerKeys, payload_limit: int) -> Operation[EnqueueBatch]:
    """An empty batch with the owner's key, which is created in this transaction if there is none."""
    if not options.private:
        return EnqueueBatch(options, plain_digest, None, payload_limit)
    key = yield from keys.ensure(options.owner)
    return EnqueueBatch(options, key.digest, key, payload_limit)


def flush(batch: EnqueueBatch, keys: OwnerKeys) -> Operation[list[JobRef]]:
    """`EnqueueBatch.flush`; drops a cached key that the database no longer has."""
    try:
        return (yield from batch.flush())
    except UnknownKey:
        keys.drop(batch.options.owner)
        raise


def enqueue_one(
    job: JobRequest | Flow,
    options: JobOptions,
    idempotency_key: str | None,
    keys: OwnerKeys,
    limit: int,
) -> Operation[JobRef]:
    """Enqueue one job in the current transaction."""
    batch = yield from new_batch(options, keys, limit)
    batch.add(batch.prepare(job), idempotency_key)
    return (yield from flush(batch, keys))[0]
