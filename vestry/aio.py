"""The asyncio client. Everything but the I/O is shared with `vestry.client`."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import os
import time
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import UUID

import psycopg
from psycopg_pool import AsyncConnectionPool

from vestry.crypto.keyring import KeyRing
from vestry.crypto.owner_keys import OwnerKeys
from vestry.db import job_queries
from vestry.db.connection import (
    CONNECT_S,
    AsyncConnectionLike,
    all_or_nothing_async,
    async_connection,
    plain_async,
)
from vestry.db.enqueue import KeyedJobs, enqueue_one, flush, new_batch
from vestry.db.job_queries import JobLike
from vestry.db.notifications import READ_AGAIN_S, AsyncCompletionListener
from vestry.errors import NotFinished, Unavailable, WaitTimeout
from vestry.jobs.base import RESULT_TTL_S, JobOptions, JobRequest
from vestry.jobs.embedding import Document
from vestry.jobs.flow import Flow, followed, has_files
from vestry.jobs.results import JobRef, JobStatus, Result, State
from vestry.lane_control import AsyncLaneControl
from vestry.operations import Operation, execute_async, translated
from vestry.replays import AsyncReplays
from vestry.search import vector_search
from vestry.search.hits import Hits
from vestry.search.pipeline import Ask, Do, Search, follow_async
from vestry.search.vector_search import SearchRequest
from vestry.settings import resolve
from vestry.validation import PAYLOAD_LIMIT

T = TypeVar("T")


class AsyncVestry(AsyncReplays, AsyncLaneControl):
    """A producer: enqueues in the caller's transactions, waits, reads, searches.

    It belongs to the event loop it is first used in. Close it, or use it in an `async with`.
    """

    def __init__(
        self,
        database_url: str | None = None,
        keyring: KeyRing | str | os.PathLike[str] | None = None,
        *,
        pool_size: int = 8,
        payload_limit: int = PAYLOAD_LIMIT,
    ) -> None:
        """Find the database and the key ring; connect when first needed.

        Args:
            database_url: `postgresql://…` of a producer's login, used for everything that is not
                done on the caller's own connection. Without it, see `vestry.settings`.
            keyring: for private jobs: a key ring or the path of its file.
            pool_size: connections at most, besides one that listens.
            payload_limit: bytes of a job's serialised payload.

        Raises:
            SettingsError: no database is named.
            KeyRingError: the key ring cannot be used.
        """
        settings = resolve(database_url, keyring)
        self._keys = OwnerKeys(settings.keyring)
        self._payload_limit = payload_limit
        self._pool: AsyncConnectionPool[psycopg.AsyncConnection[Any]] = AsyncConnectionPool(
            settings.conninfo,
            min_size=0,
            max_size=pool_size,
            kwargs={"autocommit": True},
            open=False,
            timeout=CONNECT_S,
            name="vestry",
        )
        self._listener = AsyncCompletionListener(settings.conninfo)

    def __repr__(self) -> str:
        return "AsyncVestry()"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._listener.close()
        await self._pool.close()

    # -- enqueueing, in the caller's transaction --------------------------------------------------

    async def enqueue(
        self,
        conn: AsyncConnectionLike,
        job: JobRequest | Flow,
        *,
        owner: str,
        privacy: str,
        latency: str = "bulk",
        task: str | None = None,
        quality: str = "adequate",
        tier: str | None = None,
        then: Sequence[JobRequest | Flow] = (),
        idempotency_key: str | None = None,
        run_at: dt.datetime | None = None,
        deadline: dt.datetime | None = None,
        max_attempts: int | None = None,
        result_ttl_s: int = RESULT_TTL_S,
    ) -> JobRef:
        """As `Vestry.enqueue`, in the caller's transaction on an asynchronous connection."""
        options = JobOptions(
            owner, privacy, latency, task, quality, tier, run_at, deadline, max_attempts,
            result_ttl_s,
        )  # fmt: skip
        asked = followed(job, then)
        steps = enqueue_one(asked, options, idempotency_key, self._keys, self._payload_limit)
        caller = await async_connection(conn)
        async with all_or_nothing_async(caller) if has_files(asked) else plain_async():
            return await execute_async(caller, steps)

    async def enqueue_many(
        self,
        conn: AsyncConnectionLike,
        jobs: Iterable[JobRequest | Flow] | AsyncIterable[JobRequest | Flow],
        *,
        owner: str,
        privacy: str,
        latency: str = "bulk",
        task: str | None = None,
        quality: str = "adequate",
        tier: str | None = None,
        idempotency_keys: Iterable[str | None] | None = None,
        run_at: dt.datetime | None = None,
        deadline: dt.datetime | None = None,
        max_attempts: int | None = None,
        result_ttl_s: int = RESULT_TTL_S,
    ) -> list[JobRef]:
        """As `Vestry.enqueue_many`; `jobs` may be an asynchronous iterable too."""
        options = JobOptions(
            owner, privacy, latency, task, quality, tier, run_at, deadline, max_attempts,
            result_ttl_s,
        )  # fmt: skip
        caller = await async_connection(conn)
        references: list[JobRef] = []
        keyed = KeyedJobs(jobs, idempotency_keys)
        async with all_or_nothing_async(caller):
            batch = await execute_async(caller, new_batch(options, self._keys, self._payload_limit))
            async for job, key in keyed:
                with keyed.located():
                    prepared = batch.prepare(job)
                if not batch.has_room_for(prepared):
                    references += await execute_async(caller, flush(batch, self._keys))
                with keyed.located():
                    batch.add(prepared, key)
            references += await execute_async(caller, flush(batch, self._keys))
        return references

    async def delete_documents(
        self,
        conn: AsyncConnectionLike,
        *,
        owner: str,
        privacy: str,
        source: str,
        ids: Iterable[str | Document],
    ) -> int:
        """As `Vestry.delete_documents`."""
        steps = job_queries.delete_documents(owner, privacy, source, ids, self._keys)
        return await execute_async(await async_connection(conn), steps)

    # -- jobs that exist --------------------------------------------------------------------------

    async def wait(self, job: JobLike, timeout: float | None = None) -> Result:  # noqa: ASYNC109 (as Vestry)
        """As `Vestry.wait`."""
        return await self._wait(job, timeout, lambda: self.result(job))

    async def wait_finished(self, job: JobLike, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """As `Vestry.wait_finished`."""
        name = job_queries.job_id(job)
        await self._wait(name, timeout, lambda: self._do(lambda: job_queries.check_finished(name)))

    async def result(self, job: JobLike) -> Result:
        """A finished job's result; raises as `wait`, and `NotFinished` while it goes on."""
        return await self._do(lambda: job_queries.result(job_queries.job_id(job), self._keys))

    async def result_json(self, job: JobLike) -> dict[str, Any]:
        """A finished job's result as the worker wrote it; raises as `result`."""
        name = job_queries.job_id(job)
        told = await self._do(lambda: job_queries.outcome(name, self._keys))
        return told[1]

    async def status(self, job: JobLike) -> JobStatus:
        """Where a job stands. Raises `UnknownJob`."""
        return await self._do(lambda: job_queries.status(job_queries.job_id(job)))

    async def statuses(self, jobs: Iterable[JobLike]) -> list[JobStatus]:
        """Where many jobs stand, in order; those that do not exist are left out."""
        ids = [job_queries.job_id(job) for job in jobs]
        return await self._do(lambda: job_queries.statuses(ids))

    async def flow(self, job: JobLike) -> list[JobStatus]:
        """See `Vestry.flow`."""
        return await self._do(lambda: job_queries.flow(job_queries.job_id(job)))

    async def cancel(self, jobs: JobLike | Sequence[JobLike]) -> dict[UUID, State]:
        """Cancel one job or many, queued or running, and say which state each is in now.

        A finished job stays as it is. Raises `UnknownJob` for a single one that does not exist.
        """
        ids = job_queries.job_ids(jobs)
        return await self._do(lambda: job_queries.cancel(ids))

    # -- search -----------------------------------------------------------------------------------

    async def search(
        self,
        query: str,
        *,
        owner: str,
        privacy: str,
        sources: Sequence[str] | None = None,
        own_sources: Sequence[str] | None = None,
        limit: int = 10,
        space: str | None = None,
        timeout: float = 30.0,  # noqa: ASYNC109
        known_owner: bool = False,
        rerank: bool | None = None,
    ) -> Hits:
        """As `Vestry.search`."""
        request = SearchRequest(owner, privacy, sources, own_sources, limit)
        asked = Search(query, request, space, timeout, known_owner, rerank)
        return await follow_async(asked.course(self._keys), self._carry_out)

    async def search_by_vector(
        self,
        vector: Sequence[float],
        *,
        space: str,
        owner: str,
        privacy: str,
        sources: Sequence[str] | None = None,
        own_sources: Sequence[str] | None = None,
        limit: int = 10,
    ) -> Hits:
        """As `Vestry.search_by_vector`."""
        request = SearchRequest(owner, privacy, sources, own_sources, limit)
        return await self._do(
            lambda: vector_search.nearest(request, vector, space, self._keys), atomic=True
        )

    # -- connections ------------------------------------------------------------------------------

    async def _carry_out(self, wanted: Do | Ask) -> Any:
        if isinstance(wanted, Do):
            return await self._do(wanted.steps, atomic=wanted.atomic)
        job, options = wanted.job, wanted.options
        asked = await self._do(
            lambda: enqueue_one(job, options, None, self._keys, self._payload_limit), atomic=True
        )
        answer = lambda: job_queries.outcome(asked.id, self._keys, discard=True)  # noqa: E731
        try:
            return await self._wait(asked, wanted.timeout, lambda: self._do(answer, atomic=True))
        except (WaitTimeout, asyncio.CancelledError):
            await asyncio.shield(self.cancel(asked))
            raise

    async def _wait(
        self,
        job: JobLike,
        timeout: float | None,  # noqa: ASYNC109
        read: Callable[[], Awaitable[T]],
    ) -> T:
        """Read until there is something to read, at once when the job is said to be done."""
        name = job_queries.job_id(job)
        end = None if timeout is None else time.monotonic() + timeout
        async with self._listener.watch(name) as done:
            while True:
                lost: Unavailable | None = None
                try:
                    return await read()
                except NotFinished:
                    pass
                except Unavailable as error:
                    lost = error
                left = READ_AGAIN_S if end is None else min(READ_AGAIN_S, end - time.monotonic())
                if left <= 0:
                    raise lost or WaitTimeout
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(done.wait(), left)
                done.clear()

    async def _do(self, steps: Callable[[], Operation[T]], *, atomic: bool = False) -> T:
        """Carry out steps on a connection of our own, once more if that turns out to be dead."""
        with translated():
            await self._pool.open()
            try:
                return await self._once(steps(), atomic=atomic)
            except Unavailable:
                await self._pool.check()
                return await self._once(steps(), atomic=atomic)

    async def _once(self, steps: Operation[T], *, atomic: bool) -> T:
        async with self._pool.connection() as conn, conn.transaction() if atomic else plain_async():
            return await execute_async(conn, steps)
