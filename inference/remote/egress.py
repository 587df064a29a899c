"""The one way out: a request to a cloud is on record before its first byte leaves, or it is not made.

A cloud backend's client gets its transport here. The transport itself writes the record, so that no
call of a library, no retry and no redirect of its own can go without one; and it sends nothing for
anybody but jobs that were named around the call, which the database compares with what it knows.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from types import ModuleType
from typing import Any, Final, Protocol, Self
from uuid import UUID

from inference.errors import InferenceError

log = logging.getLogger(__name__)

_jobs: ContextVar[tuple[UUID, ...]] = ContextVar("vestry_egress_jobs", default=())
_asking: ContextVar[bool] = ContextVar("vestry_egress_asking", default=False)
_sending: ContextVar[bool] = ContextVar("vestry_egress_sending", default=False)

SEPARATORS: Final = 4
"""Bytes between a header's name and value, and after it."""


class Recorder(Protocol):
    """Writes the record of a request that is about to be made, and returns once it is committed."""

    def __call__(self, backend: str, size: int, jobs: Sequence[UUID]) -> None:
        """Raise whatever prevents it: then nothing is sent.

        Args:
            backend: as in the catalogue.
            size: bytes of the request.
            jobs: for which it is made.
        """
        ...


@contextlib.contextmanager
def on_behalf_of(jobs: Sequence[UUID]) -> Iterator[None]:
    """Name the jobs that requests in this block, on this thread, are made for. Blocks may be nested."""
    token = _jobs.set(tuple(jobs))
    try:
        yield
    finally:
        _jobs.reset(token)


@contextlib.contextmanager
def asking() -> Iterator[None]:
    """Let this thread ask a cloud how it is, in a process that runs no jobs: a GET of a bare path."""
    token = _asking.set(True)
    try:
        yield
    finally:
        _asking.reset(token)


def sending() -> bool:
    """Whether this thread is just sending a request that is on record."""
    return _sending.get()


def send_refused_reason(error: BaseException) -> InferenceError | None:
    """Why a request was not sent, where that is what an SDK's error comes from."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, InferenceError):
        cause = cause.__cause__
    return cause


class EgressTransport:
    """A transport for `httpx.Client(transport=…, trust_env=False)` of a cloud backend.

    Args:
        httpx: the module `httpx` or `httpx2`, whichever the client is of.
        backend: the backend's name.
        record: writes the record; None in a process that may call no cloud.
        inner: what sends, a transport of that module's.
    """

    def __init__(
        self, httpx: ModuleType, backend: str, record: Recorder | None, inner: Any
    ) -> None:
        self._httpx = httpx
        self._backend = backend
        self._record = record
        self._inner = inner

    def handle_request(self, request: Any) -> Any:
        """Record the request, then send it.

        Raises:
            httpx.ConnectError, InferenceError: it was not recorded, and not sent.
        """
        jobs = _jobs.get()
        if self._record is None and _asking.get() and _is_question(request):
            return self._inner.handle_request(request)
        if self._record is None or not jobs:
            log.error("a cloud was to be called without a job: not called")
            raise self._httpx.ConnectError("no cloud is called from here")
        try:
            self._record(self._backend, _size(request), jobs)
        except Exception as error:  # whatever it is: without a record nothing leaves
            log.warning("a request is not on record (%s): not sent", type(error).__name__)
            if isinstance(error, InferenceError):
                raise  # through the SDK, which wraps it: see `withheld`
            raise self._httpx.ConnectError("the request is not on record") from None
        token = _sending.set(True)
        try:
            return self._inner.handle_request(request)
        finally:
            _sending.reset(token)

    def close(self) -> None:
        """Give up connections."""
        self._inner.close()

    def __enter__(self) -> Self:
        self._inner.__enter__()
        return self

    def __exit__(self, *details: object) -> None:
        self._inner.__exit__(*details)


def _is_question(request: Any) -> bool:
    """Whether nothing of anybody's can be in it."""
    return request.method == "GET" and not request.url.query and not request.read()


def _size(request: Any) -> int:
    """Bytes of a request: its line, headers and body."""
    headers = sum(len(name) + len(value) + SEPARATORS for name, value in request.headers.raw)
    return len(request.method) + len(request.url.raw_path) + headers + len(request.read())
