"""A worker's fetcher in the test's process, with the test's handlers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from tasks.protocol import Handler, NoPassageSearch
from tests.waiting import eventually
from workers.app import make_app
from workers.celery_integration.worker_lifecycle import WorkerLifecycle
from workers.execution import components
from workers.execution.components import WorkerComponents
from workers.execution.fetcher import JobFetcher
from workers.settings import Settings
from workers.stack.dev_stack import DevStack

LANE = "shareable.bulk.gpu"


@contextmanager
def runtime(
    stack: DevStack, handler: Handler | Mapping[str, Handler], **overrides: Any
) -> Iterator[JobFetcher]:
    """A fetcher as a worker builds it, not started and without hints."""
    url = stack.database_url("vestry_shareable")
    settings = Settings(
        **(
            {"database_url": url, "privacy": "shareable", "lanes": (LANE,), "poll_s": 0.05}
            | overrides
        )
    )
    life = WorkerLifecycle(make_app(stack.broker_url("shareable"), "shareable"), settings)
    handlers = handler if isinstance(handler, Mapping) else {"embedding": handler}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            components, "build_components", lambda *_: WorkerComponents(handlers, NoPassageSearch())
        )
        life.init(SimpleNamespace(hostname="test"))
    fetcher = life.fetcher()
    executor = fetcher.executor
    try:
        yield fetcher
    finally:
        fetcher.drain()
        # Closing the pool while a fetch thread uses it would raise errors that are not under test.
        eventually(lambda: not executor.heartbeat.held_leases())
        executor.heartbeat.stop()
        executor.pool.close()
