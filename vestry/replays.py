"""The part of both clients that tells what served jobs, and replays dead and degraded ones."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar, overload

from vestry.crypto.owner_keys import OwnerKeys
from vestry.db import job_queries, receipts, replay
from vestry.db.job_queries import JobLike
from vestry.db.receipts import Receipt
from vestry.db.replay import JobFilter, PastJob
from vestry.jobs.results import JobRef
from vestry.operations import Operation

T = TypeVar("T")


class _Carries(Protocol):
    """A client that carries out steps."""

    _keys: OwnerKeys

    def _do(self, steps: Callable[[], Operation[T]], *, atomic: bool = False) -> T: ...


class _CarriesLater(Protocol):
    """The same, for asyncio."""

    _keys: OwnerKeys

    def _do(self, steps: Callable[[], Operation[T]], *, atomic: bool = False) -> Awaitable[T]: ...


class Replays:
    """What `Vestry` does with jobs that are over."""

    @overload
    def replay(self: _Carries, jobs: JobLike) -> JobRef: ...  # type: ignore[overload-overlap] # a str is one job
    @overload
    def replay(self: _Carries, jobs: Sequence[JobLike]) -> list[JobRef]: ...
    def replay(self: _Carries, jobs: JobLike | Sequence[JobLike]) -> JobRef | list[JobRef]:
        """Run a finished job once more, or many: each as a new job with everything the old one had.

        A new job has the owner, privacy, kind, task, options and input of the old one, and names it
        in `replay_of`. It runs at once and has no deadline. Its documents are those of the old job at
        that time: one that was enqueued again or deleted since is left alone. Jobs that died waiting
        for it are replayed with it. The old one's idempotency key stands for the new job from now on.
        A job is replayed once: asked again, this returns the same new job, `created` being False.

        For dead jobs, and for those that another model served than the intended one (`degraded`).

        Raises:
            PayloadGone: what the job was given is no longer kept, as after a private job's success.
            NotFinished: it still goes on.
            UnknownJob: it does not exist.
            OwnerForgotten: nothing may be stored for its owner. Of many jobs, all are replayed or none.
        """
        ids = job_queries.job_ids(jobs)
        made = self._do(lambda: replay.replay(ids, self._keys), atomic=True)
        return made if _many(jobs) else made[0]

    def dead(self: _Carries, **which: Any) -> list[PastJob]:
        """Dead jobs, the latest first, each with its reason; arguments as `vestry.db.replay.Which`."""
        meant = JobFilter(**which)
        return self._do(lambda: replay.dead(meant), atomic=True)

    def degraded(self: _Carries, **which: Any) -> list[PastJob]:
        """Jobs that another model than the intended one served; arguments as `dead`."""
        meant = JobFilter(**which)
        return self._do(lambda: replay.degraded(meant), atomic=True)

    def receipts(self: _Carries, job: JobLike) -> list[Receipt]:
        """What served each attempt of a job, and why that. Raises `UnknownJob`."""
        name = job_queries.job_id(job)
        return self._do(lambda: receipts.receipts(name))

    def past_job(self: _Carries, job: JobLike) -> PastJob:
        """A job with all that decides whether it can be replayed. Raises `UnknownJob`."""
        name = job_queries.job_id(job)
        return self._do(lambda: replay.past_job(name), atomic=True)


class AsyncReplays:
    """What `AsyncVestry` does with jobs that are over."""

    @overload
    async def replay(self: _CarriesLater, jobs: JobLike) -> JobRef: ...  # type: ignore[overload-overlap]
    @overload
    async def replay(self: _CarriesLater, jobs: Sequence[JobLike]) -> list[JobRef]: ...
    async def replay(
        self: _CarriesLater, jobs: JobLike | Sequence[JobLike]
    ) -> JobRef | list[JobRef]:
        """As `Vestry.replay`."""
        ids = job_queries.job_ids(jobs)
        made = await self._do(lambda: replay.replay(ids, self._keys), atomic=True)
        return made if _many(jobs) else made[0]

    async def dead(self: _CarriesLater, **which: Any) -> list[PastJob]:
        """As `Vestry.dead`."""
        meant = JobFilter(**which)
        return await self._do(lambda: replay.dead(meant), atomic=True)

    async def degraded(self: _CarriesLater, **which: Any) -> list[PastJob]:
        """As `Vestry.degraded`."""
        meant = JobFilter(**which)
        return await self._do(lambda: replay.degraded(meant), atomic=True)

    async def receipts(self: _CarriesLater, job: JobLike) -> list[Receipt]:
        """As `Vestry.receipts`."""
        name = job_queries.job_id(job)
        return await self._do(lambda: receipts.receipts(name))

    async def past_job(self: _CarriesLater, job: JobLike) -> PastJob:
        """As `Vestry.past_job`."""
        name = job_queries.job_id(job)
        return await self._do(lambda: replay.past_job(name), atomic=True)


def _many(jobs: object) -> bool:
    return isinstance(jobs, Sequence) and not isinstance(jobs, str)
