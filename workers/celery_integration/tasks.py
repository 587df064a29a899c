"""The Celery tasks: one per kind, named after it. A task is a hint; its only argument is the job's id.

Flower shows a job by the end of its task: `Ignore` if the job is done or another worker has it, `Retry`
if it will run again, a failure if it is dead, `task-revoked` if it was cancelled, expired or
superseded.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any
from uuid import UUID

import psycopg
from celery import Celery
from celery.exceptions import Ignore, Retry
from kombu.exceptions import OperationalError

from models.states import State
from vestry.lanes import KINDS
from workers.execution.fetcher import JobFetcher
from workers.execution.finish import REFUSED

log = logging.getLogger(__name__)

STOPPED = frozenset({State.CANCELLED, State.EXPIRED, State.SUPERSEDED, REFUSED})
"""Ends of a job without result or failure: Flower shows each as revoked."""


class JobDead(Exception):
    """The job is dead. The argument is the error code, never content."""

    content_free = True


class JobRetried(Retry):  # type: ignore[misc] # Celery ships no types
    """The job runs again later. The message is the error code, never content."""

    content_free = True

    def __repr__(self) -> str:
        return f"JobRetried({self.message!r})"


def register(app: Celery, fetcher: Callable[[], JobFetcher]) -> None:
    """Add a task per kind to an app.

    Args:
        app: the worker's app.
        fetcher: returns the process's fetcher; called when a message arrives.
    """
    for kind in KINDS:
        app.task(_body(kind, fetcher), name=kind, bind=True, ignore_result=True)


def _body(kind: str, fetcher: Callable[[], JobFetcher]) -> Callable[[Any, str], None]:
    def run(task: Any, job: str) -> None:
        try:
            job_id = UUID(job)
        except (ValueError, AttributeError, TypeError):
            raise Ignore from None
        lane = task.request.delivery_info.get("routing_key") or ""
        try:
            finished = fetcher().on_hint(lane, kind, job_id)
            ended = fetcher().terminal_state(lane, job_id) if finished is None else None
        except psycopg.Error as error:
            log.warning("hint dropped (%s); its job stays queued", type(error).__name__)
            raise JobRetried("database_unavailable") from None
        except Exception as error:
            # The boundary: the error's message may quote a payload, and Flower and the log show it.
            log.error("hint failed (%s); its job will be retried", type(error).__name__)  # noqa: TRY400
            raise JobRetried(type(error).__name__) from None
        if finished is None:
            state, code = ended or (None, None)
            if state == State.QUEUED:
                raise JobRetried(code or "retry")
            _send_revoked(task, state)
            raise Ignore
        state, failure = finished.states.get(job_id), finished.failures.get(job_id)
        if state == State.SUCCEEDED:
            return
        if state == State.QUEUED and failure is not None:
            raise JobRetried(failure.code)
        if state == State.DEAD and failure is not None:
            raise JobDead(failure.code)
        _send_revoked(task, state)
        raise Ignore

    run.__name__ = kind
    return run


def _send_revoked(task: Any, state: str | None) -> None:
    """Send `task-revoked` for a stopped job: with `Ignore` alone, Flower would show it as started."""
    if state in STOPPED:
        with contextlib.suppress(OperationalError, OSError):
            task.send_event("task-revoked", retry=False, terminated=False, expired=False)
