"""Egress transport: a request to a cloud is recorded before its first byte is sent, or not sent.

Every cloud backend's client uses this transport. The transport itself writes the record, so that no
call, retry or redirect of a library can be sent without one. It sends requests only for jobs that the
caller has named; the database checks that these are shareable.
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
_probing: ContextVar[bool] = ContextVar("vestry_egress_probing", default=False)
_sending: ContextVar[bool] = ContextVar("vestry_egress_sending", default=False)

SEPARATORS: Final = 4
"""Bytes of a header besides its name and value."""


class Recorder(Protocol):
    """Writes the record of a request before it is sent."""

    def __call__(self, backend: str, size: int, jobs: Sequence[UUID]) -> None:
        """Return once the record is committed; if this raises, nothing is sent.

        Args:
            backend: as in the catalogue.
            size: bytes of the request.
            jobs: for which it is made.
        """
        ...


@contextlib.contextmanager
def on_behalf_of(jobs: Sequence[UUID]) -> Iterator[None]:
    """Name the jobs for which this thread makes requests in the block. Blocks may be nested."""
    token = _jobs.set(tuple(jobs))
    try:
        yield
    finally:
        _jobs.reset(token)


@contextlib.contextmanager
def probing() -> Iterator[None]:
    """Allow this thread to probe a cloud with a GET of a bare path, in a process that runs no jobs."""
    token = _probing.set(True)
    try:
        yield
    finally:
        _probing.reset(token)


def sending() -> bool:
    """Whether this thread is sending a recorded request."""
    return _sending.get()


def send_refused_reason(error: BaseException) -> InferenceError | None:
    """The reason for which a request was not sent, if that caused an SDK's error."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, InferenceError):
        cause = cause.__cause__
    return cause


class EgressTransport:
    """A transport for `httpx.Client(transport=…, trust_env=False)` of a cloud backend.

    Args:
        httpx: the client's module, `httpx` or `httpx2`.
        backend: the backend's name.
        record: writes the record; None in a process that may call no cloud.
        inner: transport of that module, which sends.
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
        if self._record is None and _probing.get() and _is_probe(request):
            return self._inner.handle_request(request)
        if self._record is None or not jobs:
            log.error("request to a cloud not sent (no job, or a process without a recorder)")
            raise self._httpx.ConnectError("no request to a cloud is allowed here")
        try:
            self._record(self._backend, _size(request), jobs)
        except Exception as error:  # of any kind: without a record nothing is sent
            log.warning(
                "request to a cloud not sent (egress record failed: %s)", type(error).__name__
            )
            if isinstance(error, InferenceError):
                raise  # through the SDK, which wraps it: see `send_refused_reason`
            raise self._httpx.ConnectError("the request is not recorded") from None
        token = _sending.set(True)
        try:
            return self._inner.handle_request(request)
        finally:
            _sending.reset(token)

    def close(self) -> None:
        """Close connections."""
        self._inner.close()

    def __enter__(self) -> Self:
        self._inner.__enter__()
        return self

    def __exit__(self, *details: object) -> None:
        self._inner.__exit__(*details)


def _is_probe(request: Any) -> bool:
    """Whether a request can hold no content: a GET without query and body."""
    return request.method == "GET" and not request.url.query and not request.read()


def _size(request: Any) -> int:
    """Bytes of a request: its line, headers and body."""
    headers = sum(len(name) + len(value) + SEPARATORS for name, value in request.headers.raw)
    return len(request.method) + len(request.url.raw_path) + headers + len(request.read())
