"""The asyncio client."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack, overload
from uuid import UUID

import psycopg
from psycopg_pool import AsyncConnectionPool

from vestry.crypto.keyring import KeyRing
from vestry.crypto.owner_keys import OwnerKeys
from vestry.db import job_queries, receipts, replay
from vestry.db.enqueue import AsyncJobs, KeyedJobs, enqueue_one, flush, new_batch
from vestry.db.job_queries import BackendStatus, JobLike, LaneStatus
from vestry.db.notifications import POLL_S, AsyncCompletionListener
from vestry.db.operations import (
    CONNECT_TIMEOUT_S,
    AsyncConnectionLike,
    Operation,
    execute_async,
    no_transaction_async,
    psycopg_connection_async,
    savepoint_async,
    translated,
)
from vestry.db.receipts import Receipt
from vestry.db.replay import JobFilter, PastJob
from vestry.errors import (
    SEARCH_TIMEOUT,
    NotFinished,
    Unavailable,
    UnknownOwner,
    VestryError,
    WaitTimeout,
)
from vestry.jobs.base import EnqueueOptions, JobOptions, JobRequest
from vestry.jobs.embedding import Document
from vestry.jobs.flow import Flow, followed, has_files
from vestry.jobs.results import JobRef, JobStatus, Result, State
from vestry.search import pipeline, vector_search
from vestry.search.hits import Hits
from vestry.search.vector_search import SearchRequest
from vestry.settings import resolve
from vestry.validation import PAYLOAD_LIMIT, check_text, check_timeout

T = TypeVar("T")


class AsyncVestry:
    """Producer client: enqueue in the caller's transactions, wait, read results, search.

    It belongs to the event loop that first uses it. Close it, or use it as a context manager.
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
            keyring: a key ring, or the path of its file; required for private jobs.
            pool_size: most connections, besides one that listens.
            payload_limit: most bytes of a job's serialised payload.

        Raises:
            SettingsError: no database is configured.
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
            timeout=CONNECT_TIMEOUT_S,
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
        then: Sequence[JobRequest | Flow] = (),
        idempotency_key: str | None = None,
        **options: Unpack[EnqueueOptions],
    ) -> JobRef:
        """Enqueue a job in the caller's transaction: it exists if and only if that commits.

        Args:
            conn: a psycopg 3 `AsyncConnection`, or a SQLAlchemy `AsyncSession` or
                `AsyncConnection` on one.
            job: such as `Embedding(texts=[…])`, or a `Flow`.
            then: jobs or flows that run once it has succeeded; see `Flow`.
            idempotency_key: unique per owner and privacy. The same key with the same content
                returns the same job again.
            **options: see `EnqueueOptions`; `owner` and `privacy` are required.

        Raises:
            InvalidInput: names the field.
            IdempotencyConflict: the key belongs to a job with other content; nothing was enqueued,
                and the transaction is still usable.
            OwnerForgotten: nothing may be stored for this owner.
        """
        validated = JobOptions.from_keywords("enqueue", ("then", "idempotency_key"), options)
        root = followed(job, then)
        operation = enqueue_one(root, validated, idempotency_key, self._keys, self._payload_limit)
        caller = await psycopg_connection_async(conn)
        async with savepoint_async(caller) if has_files(root) else no_transaction_async():
            return await execute_async(caller, operation)

    async def enqueue_many(
        self,
        conn: AsyncConnectionLike,
        jobs: AsyncJobs,
        *,
        idempotency_keys: Iterable[str | None] | None = None,
        **options: Unpack[EnqueueOptions],
    ) -> list[JobRef]:
        """Enqueue thousands of jobs in the caller's transaction, all of them or none.

        Args:
            conn: as in `enqueue`.
            jobs: read while they are sent, a thousand at a time.
            idempotency_keys: one key or None per job.
            **options: as in `enqueue`, for all jobs.

        Returns:
            One reference per job, in order.

        Raises:
            InvalidInput: `jobs[7].…` names the job.
            IdempotencyConflict: as in `enqueue`.
            OwnerForgotten: nothing may be stored for this owner.
        """
        validated = JobOptions.from_keywords("enqueue_many", ("idempotency_keys",), options)
        caller = await psycopg_connection_async(conn)
        references: list[JobRef] = []
        keyed = KeyedJobs(jobs, idempotency_keys)
        async with savepoint_async(caller):
            empty = new_batch(validated, self._keys, self._payload_limit)
            batch = await execute_async(caller, empty)
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
        """Delete documents with their chunks and vectors, even while they are being embedded.

        Args:
            conn: the caller's transaction, as in `enqueue`.
            owner: owner of the documents.
            privacy: as they were enqueued.
            source: their source.
            ids: their ids; for those indexed without an id, the same `Document` again.

        Returns:
            The number of documents deleted.
        """
        operation = job_queries.delete_documents(owner, privacy, source, ids, self._keys)
        return await execute_async(await psycopg_connection_async(conn), operation)

    # -- existing jobs ----------------------------------------------------------------------------

    async def wait(self, job: JobLike, timeout: float | None = None) -> Result:  # noqa: ASYNC109
        """Wait for a committed job to end and return its result.

        Args:
            job: a reference or id.
            timeout: seconds; None waits without limit.

        Raises:
            WaitTimeout: the job is not finished; it continues.
            JobFailed: or a subclass: it ended without a result.
            UnknownJob, ResultGone: there is nothing to wait for.
        """
        return await self._wait(job, timeout, lambda: self.result(job))

    async def wait_finished(self, job: JobLike, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Wait until a job is in any final state; a restart of the database does not end the wait.

        Raises:
            WaitTimeout, UnknownJob: as `wait`.
            Unavailable: the database was unreachable when the timeout ended.
        """
        job_id = job_queries.job_id(job)
        await self._wait(
            job_id, timeout, lambda: self._run(lambda: job_queries.check_finished(job_id))
        )

    async def result(self, job: JobLike) -> Result:
        """A finished job's result; raises as `wait`, and `NotFinished` before it ends."""
        job_id = job_queries.job_id(job)
        return await self._run(lambda: job_queries.result(job_id, self._keys))

    async def result_json(self, job: JobLike) -> dict[str, Any]:
        """A finished job's result as the worker wrote it; raises as `result`."""
        job_id = job_queries.job_id(job)
        _, body = await self._run(lambda: job_queries.outcome(job_id, self._keys))
        return body

    async def status(self, job: JobLike) -> JobStatus:
        """The state of a job. Raises `UnknownJob`."""
        return await self._run(lambda: job_queries.status(job_queries.job_id(job)))

    async def statuses(self, jobs: Iterable[JobLike]) -> list[JobStatus]:
        """The states of many jobs, in order; jobs that do not exist are left out."""
        ids = [job_queries.job_id(job) for job in jobs]
        return await self._run(lambda: job_queries.statuses(ids))

    async def flow(self, job: JobLike) -> list[JobStatus]:
        """All jobs of a job's flow, each after its parent; one job if it is in no flow.

        Raises `UnknownJob`.
        """
        return await self._run(lambda: job_queries.flow(job_queries.job_id(job)))

    async def cancel(self, jobs: JobLike | Sequence[JobLike]) -> dict[UUID, State]:
        """Cancel one job or many, queued or running; returns the state of each after that.

        A finished job stays as it is. Raises `UnknownJob` for a single job that does not exist.
        """
        ids = job_queries.job_ids(jobs)
        return await self._run(lambda: job_queries.cancel(ids))

    # -- finished jobs: receipts, replays ---------------------------------------------------------

    @overload
    async def replay(self, jobs: JobLike) -> JobRef: ...  # type: ignore[overload-overlap] # a str is one job
    @overload
    async def replay(self, jobs: Sequence[JobLike]) -> list[JobRef]: ...
    async def replay(self, jobs: JobLike | Sequence[JobLike]) -> JobRef | list[JobRef]:
        """Run a finished job again, or many: each as a new job with the input of the old one.

        For dead jobs, and for those that another model served than the intended one (`degraded`).
        A new job has the owner, privacy, kind, task, options and input of the old one, and names it
        in `replay_of`. It runs at once and has no deadline. Its documents are those of the old job
        at that time: one that was enqueued again or deleted since is skipped. Jobs that died with
        it, as its followers in a flow, are replayed too. The old job's idempotency key now belongs
        to the new job. A job is replayed once: a second call returns the same new job, with
        `created` False.

        Raises:
            PayloadGone: the input is no longer kept, as after a private job's success.
            NotFinished: the job has not ended.
            UnknownJob: it does not exist.
            OwnerForgotten: nothing may be stored for its owner. Of many jobs, all are replayed or
                none.
        """
        ids = job_queries.job_ids(jobs)
        references = await self._run(lambda: replay.replay(ids, self._keys), atomic=True)
        return references if job_queries.is_many(jobs) else references[0]

    async def dead(self, **filters: Any) -> list[PastJob]:
        """Dead jobs, the latest first, each with its reason; `filters` are those of `JobFilter`."""
        job_filter = JobFilter(**filters)
        return await self._run(lambda: replay.dead(job_filter), atomic=True)

    async def degraded(self, **filters: Any) -> list[PastJob]:
        """Jobs that another model than the intended one served; `filters` as in `dead`."""
        job_filter = JobFilter(**filters)
        return await self._run(lambda: replay.degraded(job_filter), atomic=True)

    async def receipts(self, job: JobLike) -> list[Receipt]:
        """The model behind each attempt of a job, and why that model. Raises `UnknownJob`."""
        job_id = job_queries.job_id(job)
        return await self._run(lambda: receipts.receipts(job_id))

    async def past_job(self, job: JobLike) -> PastJob:
        """A finished job and whether it can be replayed. Raises `UnknownJob`."""
        job_id = job_queries.job_id(job)
        return await self._run(lambda: replay.past_job(job_id), atomic=True)

    # -- lanes and backends -----------------------------------------------------------------------

    async def lanes(self) -> list[LaneStatus]:
        """Queued and running jobs of each lane."""
        return await self._run(job_queries.lanes)

    async def backends(self) -> list[BackendStatus]:
        """Backends with recent failures, and their circuit breakers; healthy ones are left out."""
        return await self._run(job_queries.backends)

    async def pause_lane(self, lane: str) -> None:
        """Stop claims from a lane; running jobs finish. Raises `UnknownLane`."""
        await self._run(lambda: job_queries.pause_lane(lane, paused=True))

    async def resume_lane(self, lane: str) -> None:
        """Allow claims from a lane again. Raises `UnknownLane`."""
        await self._run(lambda: job_queries.pause_lane(lane, paused=False))

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
        """Search an owner's documents, and shareable sources on request.

        The query is embedded by an interactive job of the given privacy; neither its text nor its
        vector is kept.

        Args:
            query: the text to search for.
            owner: owner of the documents.
            privacy: `private` searches all of the owner's documents, `shareable` only the shareable
                ones (a cloud model may then read the query).
            sources: shareable sources, of any owner, to search as well.
            own_sources: search only these of the owner's sources.
            limit: most hits, up to 1000.
            space: name of the embedding space; by default that of the workers' embedding model.
            timeout: seconds for the whole search.
            known_owner: raise if nothing is indexed for the owner, instead of returning no hits.
            rerank: rerank the nearest passages, in a job of the same privacy; by default if the
                workers have a reranker. If it fails or is slow, the hits are `degraded`.

        Returns:
            The best passage of each of the nearest documents, nearest first, or as reranked.

        Raises:
            InvalidInput, UnknownOwner, UnknownSpace, WaitTimeout, JobFailed: as their names say.
        """
        began = time.monotonic()
        request = SearchRequest(owner, privacy, sources, own_sources, limit)
        check_text("query", query)
        check_timeout(timeout)
        model = None
        if space is not None:
            model = await self._run(lambda: vector_search.embedding_model(space))
        if known_owner:
            indexed = await self._run(lambda: job_queries.has_documents(owner), atomic=True)
            if not indexed:
                raise UnknownOwner
        options = pipeline.job_options(request)
        try:
            status, body = await self._run_search_job(
                pipeline.embedding_job(query, model), options, timeout
            )
        except WaitTimeout:
            raise WaitTimeout(SEARCH_TIMEOUT) from None
        embedded = time.monotonic()
        vector, vector_space = pipeline.query_vector(body, space)
        hits, to_rerank = await self._run(
            lambda: vector_search.candidates(
                request, vector, vector_space, self._keys, rerank=rerank
            ),
            atomic=True,
        )
        database_s = time.monotonic() - embedded
        hits = pipeline.with_times(
            hits, status, embedding_s=embedded - began, database_s=database_s
        )
        if to_rerank:
            hits = await self._rerank(query, hits, options, began + timeout)
        return dataclasses.replace(hits, hits=hits[:limit])

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
        """`search` by a vector instead of a text; needs no worker.

        `vector` has as many finite numbers as its space, `space`, has dimensions.
        """
        request = SearchRequest(owner, privacy, sources, own_sources, limit)
        return await self._run(
            lambda: vector_search.nearest(request, vector, space, self._keys), atomic=True
        )

    async def _rerank(self, query: str, hits: Hits, options: JobOptions, deadline: float) -> Hits:
        """Hits in the reranker's order; unchanged and degraded if it fails or is slow."""
        positions = pipeline.readable(hits)
        if not positions:
            return hits
        began = time.monotonic()
        timeout = min(deadline - began, pipeline.RERANK_TIMEOUT_S)
        if timeout <= 0:
            return hits.degrade(pipeline.RERANKER_TOO_SLOW)
        job = pipeline.rerank_job(query, hits, positions)
        try:
            status, body = await self._run_search_job(job, options, timeout)
            hits = pipeline.reranked(hits, positions, status, body)
        except WaitTimeout:
            hits = hits.degrade(pipeline.RERANKER_TOO_SLOW)
        except (VestryError, LookupError, TypeError, ValueError):
            hits = hits.degrade(pipeline.RERANKER_FAILED)
        return dataclasses.replace(hits, rerank_s=time.monotonic() - began)

    async def _run_search_job(
        self,
        job: JobRequest,
        options: JobOptions,
        timeout: float,  # noqa: ASYNC109
    ) -> tuple[JobStatus, dict[str, Any]]:
        """Run a job of a search; returns its status and result, and deletes the result."""
        reference = await self._run(
            lambda: enqueue_one(job, options, None, self._keys, self._payload_limit), atomic=True
        )
        try:
            return await self._wait(
                reference,
                timeout,
                lambda: self._run(
                    lambda: job_queries.outcome(reference.id, self._keys, discard=True),
                    atomic=True,
                ),
            )
        except (WaitTimeout, asyncio.CancelledError):
            # No other caller reads the result, and query and result must not outlive the search.
            await asyncio.shield(self.cancel(reference))
            raise

    # -- connections ------------------------------------------------------------------------------

    async def _wait(
        self,
        job: JobLike,
        timeout: float | None,  # noqa: ASYNC109
        read: Callable[[], Awaitable[T]],
    ) -> T:
        """Call `read` until it succeeds: every second, and when the job's end is notified."""
        if timeout is not None:
            check_timeout(timeout)
        deadline = None if timeout is None else time.monotonic() + timeout
        async with self._listener.watch(job_queries.job_id(job)) as wait:
            while True:
                unavailable: Unavailable | None = None
                try:
                    return await read()
                except NotFinished:
                    pass
                except Unavailable as error:
                    unavailable = error
                remaining = POLL_S if deadline is None else deadline - time.monotonic()
                if remaining <= 0:
                    raise unavailable or WaitTimeout
                await wait(min(POLL_S, remaining))

    async def _run(self, operation: Callable[[], Operation[T]], *, atomic: bool = False) -> T:
        """Run an operation on a pooled connection; repeat it once if that connection is lost."""
        with translated():
            await self._pool.open()
            try:
                return await self._run_once(operation(), atomic=atomic)
            except Unavailable:
                await self._pool.check()
                return await self._run_once(operation(), atomic=atomic)

    async def _run_once(self, operation: Operation[T], *, atomic: bool) -> T:
        async with (
            self._pool.connection() as conn,
            conn.transaction() if atomic else no_transaction_async(),
        ):
            return await execute_async(conn, operation)
