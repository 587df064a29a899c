"""The Celery tasks: one per kind, named after it, whose only argument is the job's id.

A task is a hint. Its end tells Flower the truth: `Ignore` for a job that is done or in other hands,
`Retry` for one that will run again, a failure for a dead one, `task-revoked` for one that was
cancelled, expired or superseded.
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
from psycopg_pool import PoolTimeout

from models.states import State
from vestry.lanes import KINDS
from workers.execution.fetcher import JobFetcher
from workers.execution.finish import REFUSED

log = logging.getLogger(__name__)

STOPPED = frozenset({State.CANCELLED, State.EXPIRED, State.SUPERSEDED, REFUSED})
"""How a job may end without result or fault: Flower calls all of these revoked."""


class JobDead(Exception):
    """The job is out of attempts. Its argument is the error code, never content."""

    content_free = True


class JobRetried(Retry):  # type: ignore[misc] # Celery ships no types
    """The job runs again later. Its message is the error code, never content."""

    content_free = True

    def __repr__(self) -> str:
        return f"JobRetried({self.message!r})"


def register(app: Celery, runtime: Callable[[], JobFetcher]) -> None:
    """Add a task per kind to an app.

    Args:
        app: the worker's app.
        runtime: gives the process's runtime; asked for when a message arrives.
    """
    for kind in KINDS:
        app.task(_body(kind, runtime), name=kind, bind=True, ignore_result=True)


def _body(kind: str, runtime: Callable[[], JobFetcher]) -> Callable[[Any, str], None]:
    def run(task: Any, job: str) -> None:
        try:
            job_id = UUID(job)
        except (ValueError, AttributeError, TypeError):
            raise Ignore from None
        lane = task.request.delivery_info.get("routing_key") or ""
        try:
            finished = runtime().on_hint(lane, kind, job_id)
            stopped = runtime().terminal_state(lane, job_id) if finished is None else None
        except (psycopg.Error, PoolTimeout) as error:
            log.warning("a hint is left for later (%s)", type(error).__name__)
            raise JobRetried("database_away") from None
        except Exception as error:
            # The boundary: its message may quote a payload, and Flower and the log would show it.
            log.error("a hint ended with %s", type(error).__name__)  # noqa: TRY400
            raise JobRetried(type(error).__name__) from None
        if finished is None:
            state, code = stopped or (None, None)
            if state == State.QUEUED:
                raise JobRetried(code or "retry")
            _explain(task, state)
            raise Ignore
        state, failure = finished.states.get(job_id), finished.failures.get(job_id)
        if state == State.SUCCEEDED:
            return
        if state == State.QUEUED and failure is not None:
            raise JobRetried(failure.code)
        if state == State.DEAD and failure is not None:
            raise JobDead(failure.code)
        _explain(task, state)
        raise Ignore

    run.__name__ = kind
    return run


def _explain(task: Any, state: str | None) -> None:
    """Tell Flower of a job that was stopped; `Ignore` alone would show it as started for ever."""
    if state in STOPPED:
        with contextlib.suppress(OperationalError, OSError):
            task.send_event("task-revoked", retry=False, terminated=False, expired=False)
