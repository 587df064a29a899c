"""The Celery tasks: one per kind, named after it, whose only argument is the job's id.

A task is a hint. Its end tells Flower the truth: `Ignore` for a job that is done or in other hands,
`Retry` for one that will run again, a failure for a dead one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

from celery import Celery
from celery.exceptions import Ignore, Retry

from models.states import State
from vestry.jobs import KINDS
from workers.runtime import Runtime


class JobDead(Exception):
    """The job is out of attempts. Its argument is the error code, never content."""


def register(app: Celery, runtime: Callable[[], Runtime]) -> None:
    """Add a task per kind to an app.

    Args:
        app: the worker's app.
        runtime: gives the process's runtime; asked for when a message arrives.
    """
    for kind in KINDS:
        app.task(_body(kind, runtime), name=kind, bind=True, ignore_result=True)


def _body(kind: str, runtime: Callable[[], Runtime]) -> Callable[[Any, str], None]:
    def run(task: Any, job: str) -> None:
        try:
            job_id = UUID(job)
        except (ValueError, AttributeError, TypeError):
            raise Ignore from None
        lane = task.request.delivery_info.get("routing_key") or ""
        finished = runtime().hinted(lane, kind, job_id)
        state = finished.states.get(job_id) if finished is not None else None
        if finished is None or state is None:
            raise Ignore
        failure = finished.failures.get(job_id)
        if state == State.SUCCEEDED:
            return
        if state == State.QUEUED and failure is not None:
            raise Retry(failure.code)
        if state == State.DEAD and failure is not None:
            raise JobDead(failure.code)
        raise Ignore

    run.__name__ = kind
    return run
