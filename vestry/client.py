"""The synchronous client. Everything but the I/O is shared with `vestry.aio`."""

from __future__ import annotations

import datetime as dt
import os
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import UUID

import psycopg
from psycopg_pool import ConnectionPool

from vestry.crypto.keyring import KeyRing
from vestry.crypto.owner_keys import OwnerKeys
from vestry.db import job_queries
from vestry.db.connection import CONNECT_S, SyncConnection, all_or_nothing, plain, sync_connection
from vestry.db.enqueue import KeyedJobs, enqueue_one, flush, new_batch
from vestry.db.job_queries import JobLike
from vestry.db.notifications import READ_AGAIN_S, CompletionListener
from vestry.errors import NotFinished, Unavailable, WaitTimeout
from vestry.jobs.base import RESULT_TTL_S, JobOptions, JobRequest
from vestry.jobs.embedding import Document
from vestry.jobs.flow import Flow, followed, has_files
from vestry.jobs.results import JobRef, JobStatus, Result, State
from vestry.lane_control import LaneControl
from vestry.operations import Operation, execute, translated
from vestry.replays import Replays
from vestry.search import vector_search
from vestry.search.hits import Hits
from vestry.search.pipeline import Ask, Do, Search, follow
from vestry.search.vector_search import SearchRequest
from vestry.settings import resolve
from vestry.validation import PAYLOAD_LIMIT

T = TypeVar("T")


class Vestry(Replays, LaneControl):
    """A producer: enqueues in the caller's transactions, waits, reads, searches.

    Threads may share one; processes must each make their own. Close it, or use it in a `with`.
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
        self._pool: ConnectionPool[psycopg.Connection[Any]] = ConnectionPool(
            settings.conninfo,
            min_size=0,
            max_size=pool_size,
            kwargs={"autocommit": True},
            open=False,
            timeout=CONNECT_S,
            name="vestry",
        )
        self._listener = CompletionListener(settings.conninfo)

    def __repr__(self) -> str:
        return "Vestry()"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._listener.close()
        self._pool.close()

    # -- enqueueing, in the caller's transaction --------------------------------------------------

    def enqueue(
        self,
        conn: SyncConnection,
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
        """Enqueue a job in the caller's transaction: it exists if and only if that commits.

        Args:
            conn: a psycopg connection, or a SQLAlchemy session or connection on psycopg 3.
            job: such as `Embedding(texts=[…])`.
            owner: opaque id of whose content this is, 1 to 200 characters, stored in the clear.
            privacy: `private` (own hardware only) or `shareable` (a cloud model may see it).
            latency: `interactive` where somebody waits, else `bulk`.
            task: what the request is for; routing looks at it.
            quality: `adequate` or `best`.
            tier: the user's tier, for routing.
            then: what follows once it has succeeded; see `Flow`.
            idempotency_key: unique per owner and privacy. Same key and content: the same job again.
            run_at: not before this time.
            deadline: expires if not done by this time.
            max_attempts: how often it is tried, 5 by default.
            result_ttl_s: seconds the result is kept.

        Raises:
            InvalidInput: naming the field.
            IdempotencyConflict: the key stands for other content; nothing was enqueued, and the
                transaction is still usable.
            OwnerForgotten: nothing may be stored for this owner.
        """
        options = JobOptions(
            owner, privacy, latency, task, quality, tier, run_at, deadline, max_attempts,
            result_ttl_s,
        )  # fmt: skip
        asked = followed(job, then)
        steps = enqueue_one(asked, options, idempotency_key, self._keys, self._payload_limit)
        caller = sync_connection(conn)
        with all_or_nothing(caller) if has_files(asked) else plain():
            return execute(caller, steps)

    def enqueue_many(
        self,
        conn: SyncConnection,
        jobs: Iterable[JobRequest | Flow],
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
        """Enqueue thousands of jobs in the caller's transaction, all of them or none.

        `jobs` is any iterable, read as it is sent, a thousand at a time; `idempotency_keys` has one
        key or None for each. The other arguments are as in `enqueue`, and for all of the jobs.

        Returns:
            One reference a job, in order.

        Raises:
            InvalidInput: `jobs[7].…` says which job.
            IdempotencyConflict: as in `enqueue`.
            OwnerForgotten: nothing may be stored for this owner.
        """
        options = JobOptions(
            owner, privacy, latency, task, quality, tier, run_at, deadline, max_attempts,
            result_ttl_s,
        )  # fmt: skip
        caller = sync_connection(conn)
        references: list[JobRef] = []
        keyed = KeyedJobs(jobs, idempotency_keys)
        with all_or_nothing(caller):
            batch = execute(caller, new_batch(options, self._keys, self._payload_limit))
            for job, key in keyed:
                with keyed.located():
                    prepared = batch.prepare(job)
                if not batch.has_room_for(prepared):
                    references += execute(caller, flush(batch, self._keys))
                with keyed.located():
                    batch.add(prepared, key)
            references += execute(caller, flush(batch, self._keys))
        return references

    def delete_documents(
        self,
        conn: SyncConnection,
        *,
        owner: str,
        privacy: str,
        source: str,
        ids: Iterable[str | Document],
    ) -> int:
        """Delete documents with chunks and vectors, also while they are being embedded.

        Args:
            conn: the caller's transaction, as in `enqueue`.
            owner: whose they are.
            privacy: as they were enqueued.
            source: their source.
            ids: their ids; for those indexed without one, the same `Document` again.

        Returns:
            How many there were.
        """
        steps = job_queries.delete_documents(owner, privacy, source, ids, self._keys)
        return execute(sync_connection(conn), steps)

    # -- jobs that exist --------------------------------------------------------------------------

    def wait(self, job: JobLike, timeout: float | None = None) -> Result:
        """Wait for a committed job to end and give its result.

        Args:
            job: a reference or id.
            timeout: seconds; None waits for ever.

        Raises:
            WaitTimeout: it is not finished yet, and goes on.
            JobFailed: or a subclass: it ended without a result.
            UnknownJob, ResultGone: there is nothing to wait for.
        """
        return self._wait(job, timeout, lambda: self.result(job))

    def wait_finished(self, job: JobLike, timeout: float | None = None) -> None:
        """Wait until a job is in a final state, whichever. Outlives a restart of the database.

        Raises:
            WaitTimeout, UnknownJob: as `wait`.
            Unavailable: the database was not there when the time was up.
        """
        name = job_queries.job_id(job)
        self._wait(name, timeout, lambda: self._do(lambda: job_queries.check_finished(name)))

    def result(self, job: JobLike) -> Result:
        """A finished job's result; raises as `wait`, and `NotFinished` while it goes on."""
        return self._do(lambda: job_queries.result(job_queries.job_id(job), self._keys))

    def result_json(self, job: JobLike) -> dict[str, Any]:
        """A finished job's result as the worker wrote it; raises as `result`."""
        name = job_queries.job_id(job)
        return self._do(lambda: job_queries.outcome(name, self._keys))[1]

    def status(self, job: JobLike) -> JobStatus:
        """Where a job stands. Raises `UnknownJob`."""
        return self._do(lambda: job_queries.status(job_queries.job_id(job)))

    def statuses(self, jobs: Iterable[JobLike]) -> list[JobStatus]:
        """Where many jobs stand, in order; those that do not exist are left out."""
        ids = [job_queries.job_id(job) for job in jobs]
        return self._do(lambda: job_queries.statuses(ids))

    def flow(self, job: JobLike) -> list[JobStatus]:
        """Every job of the flow that a job is of, each behind the one it follows on.

        A job that is of no flow comes alone. Raises `UnknownJob`.
        """
        return self._do(lambda: job_queries.flow(job_queries.job_id(job)))

    def cancel(self, jobs: JobLike | Sequence[JobLike]) -> dict[UUID, State]:
        """Cancel one job or many, queued or running, and say which state each is in now.

        A finished job stays as it is. Raises `UnknownJob` for a single one that does not exist.
        """
        ids = job_queries.job_ids(jobs)
        return self._do(lambda: job_queries.cancel(ids))

    # -- search -----------------------------------------------------------------------------------

    def search(
        self,
        query: str,
        *,
        owner: str,
        privacy: str,
        sources: Sequence[str] | None = None,
        own_sources: Sequence[str] | None = None,
        limit: int = 10,
        space: str | None = None,
        timeout: float = 30.0,
        known_owner: bool = False,
        rerank: bool | None = None,
    ) -> Hits:
        """Search an owner's documents, and shareable sources on request.

        The query is embedded by an interactive job of the given privacy; neither its text nor its
        vector is kept.

        Args:
            query: what to look for.
            owner: whose documents are searched.
            privacy: `private` searches everything of the owner's, `shareable` the shareable part
                alone (a cloud model may then see the query).
            sources: shareable sources, of any owner, to search as well.
            own_sources: search only these of the owner's sources.
            limit: how many hits, at most 1000.
            space: name of the embedding space; by default the workers' own.
            timeout: seconds for all of it.
            known_owner: raise where nothing is indexed for the owner, instead of finding nothing.
            rerank: have the nearest reread by a reranker, in a job as private as the search; by
                default where the workers have one. Where it fails or is slow, `degraded` says so.

        Returns:
            The best passage of each of the nearest documents, nearest first, or as they were reranked.

        Raises:
            InvalidInput, UnknownOwner, UnknownSpace, WaitTimeout, JobFailed: as named.
        """
        request = SearchRequest(owner, privacy, sources, own_sources, limit)
        asked = Search(query, request, space, timeout, known_owner, rerank)
        return follow(asked.course(self._keys), self._carry_out)

    def search_by_vector(
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
        """`search` with the query's vector at hand; needs no worker.

        `vector` has as many finite numbers as `space`, which it belongs to, has dimensions.
        """
        request = SearchRequest(owner, privacy, sources, own_sources, limit)
        return self._do(
            lambda: vector_search.nearest(request, vector, space, self._keys), atomic=True
        )

    # -- connections ------------------------------------------------------------------------------

    def _carry_out(self, wanted: Do | Ask) -> Any:
        if isinstance(wanted, Do):
            return self._do(wanted.steps, atomic=wanted.atomic)
        job, options = wanted.job, wanted.options
        asked = self._do(
            lambda: enqueue_one(job, options, None, self._keys, self._payload_limit), atomic=True
        )
        answer = lambda: job_queries.outcome(asked.id, self._keys, discard=True)  # noqa: E731
        try:
            return self._wait(asked, wanted.timeout, lambda: self._do(answer, atomic=True))
        except (WaitTimeout, KeyboardInterrupt):
            self.cancel(asked)
            raise

    def _wait(self, job: JobLike, timeout: float | None, read: Callable[[], T]) -> T:
        """Read until there is something to read, at once when the job is said to be done."""
        name = job_queries.job_id(job)
        end = None if timeout is None else time.monotonic() + timeout
        with self._listener.watch(name) as done:
            while True:
                lost: Unavailable | None = None
                try:
                    return read()
                except NotFinished:
                    pass
                except Unavailable as error:
                    lost = error
                left = READ_AGAIN_S if end is None else min(READ_AGAIN_S, end - time.monotonic())
                if left <= 0:
                    raise lost or WaitTimeout
                done.wait(left)
                done.clear()

    def _do(self, steps: Callable[[], Operation[T]], *, atomic: bool = False) -> T:
        """Carry out steps on a connection of our own, once more if that turns out to be dead."""
        with translated():
            self._pool.open()
            try:
                return self._once(steps(), atomic=atomic)
            except Unavailable:
                self._pool.check()
                return self._once(steps(), atomic=atomic)

    def _once(self, steps: Operation[T], *, atomic: bool) -> T:
        with self._pool.connection() as conn, conn.transaction() if atomic else plain():
            return execute(conn, steps)
