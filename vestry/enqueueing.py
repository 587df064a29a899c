"""Enqueueing one job or many: keys, batches, and the calls they make. No I/O."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator

from vestry.batches import Batch
from vestry.errors import InvalidInput, UnknownKey
from vestry.flows import Flow
from vestry.jobs import JobRequest
from vestry.options import Options
from vestry.owner_keys import OwnerKeys
from vestry.results import JobRef
from vestry.sealing import plain_digest
from vestry.steps import Steps


class KeyedJobs:
    """Jobs, each with its idempotency key or None, and the place of the one that is in hand."""

    def __init__(
        self,
        jobs: Iterable[JobRequest | Flow] | AsyncIterable[JobRequest | Flow],
        keys: Iterable[str | None] | None = None,
    ) -> None:
        self._jobs = jobs
        self._keys = None if keys is None else iter(keys)
        self._place = -1

    def __iter__(self) -> Iterator[tuple[JobRequest | Flow, str | None]]:
        if not isinstance(self._jobs, Iterable):
            raise InvalidInput("jobs", "are not iterable")
        for job in self._jobs:
            yield job, self.key()
        self.spent()

    async def __aiter__(self) -> AsyncIterator[tuple[JobRequest | Flow, str | None]]:
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
    job: JobRequest | Flow,
    options: Options,
    idempotency_key: str | None,
    keys: OwnerKeys,
    limit: int,
) -> Steps[JobRef]:
    """One job in the current transaction."""
    batch = yield from new_batch(options, keys, limit)
    batch.add(batch.prepare(job), idempotency_key)
    return (yield from flush(batch, keys))[0]
