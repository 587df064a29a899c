"""The part of both clients that looks at lanes and model servers, and stops and starts lanes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from vestry.db import job_queries
from vestry.db.job_queries import BackendStatus, LaneStatus
from vestry.operations import Operation

T = TypeVar("T")


class _Carries(Protocol):
    """A client that carries out steps."""

    def _do(self, steps: Callable[[], Operation[T]], *, atomic: bool = False) -> T: ...


class _CarriesLater(Protocol):
    """The same, for asyncio."""

    def _do(self, steps: Callable[[], Operation[T]], *, atomic: bool = False) -> Awaitable[T]: ...


class LaneControl:
    """What `Vestry` does with lanes."""

    def lanes(self: _Carries) -> list[LaneStatus]:
        """How busy each lane is."""
        return self._do(job_queries.lanes)

    def backends(self: _Carries) -> list[BackendStatus]:
        """Model servers that failed lately, and the breakers of those; the others are well."""
        return self._do(job_queries.backends)

    def pause_lane(self: _Carries, lane: str) -> None:
        """Stop picking from a lane; running jobs finish. Raises `UnknownLane`."""
        self._do(lambda: job_queries.pause_lane(lane, paused=True))

    def resume_lane(self: _Carries, lane: str) -> None:
        """Pick from a lane again. Raises `UnknownLane`."""
        self._do(lambda: job_queries.pause_lane(lane, paused=False))


class AsyncLaneControl:
    """What `AsyncVestry` does with lanes."""

    async def lanes(self: _CarriesLater) -> list[LaneStatus]:
        """As `Vestry.lanes`."""
        return await self._do(job_queries.lanes)

    async def backends(self: _CarriesLater) -> list[BackendStatus]:
        """As `Vestry.backends`."""
        return await self._do(job_queries.backends)

    async def pause_lane(self: _CarriesLater, lane: str) -> None:
        """As `Vestry.pause_lane`."""
        await self._do(lambda: job_queries.pause_lane(lane, paused=True))

    async def resume_lane(self: _CarriesLater, lane: str) -> None:
        """As `Vestry.resume_lane`."""
        await self._do(lambda: job_queries.pause_lane(lane, paused=False))
