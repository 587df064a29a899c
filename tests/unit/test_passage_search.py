"""The search for passages while the database is unreachable."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import psycopg
import pytest

from inference.errors import NoBackendAvailable
from tasks.protocol import Job
from vestry.crypto.owner_keys import OwnerKeys
from vestry.jobs.generation import Grounding
from workers.execution.passage_search import DatabasePassageSearch


class SingleModelRegistry:
    """One model, which embeds all texts to the same vector."""

    space = type("Space", (), {"name": "s"})

    def model(self, _: Any) -> SingleModelRegistry:
        return self

    def embed(self, texts: list[str], *_: Any, **__: Any) -> list[list[float]]:
        return [[1.0] for _ in texts]


class BrokenPool:
    """A connection pool that always fails."""

    def connection(self) -> Any:
        raise psycopg.OperationalError


def test_search_without_database_spends_no_attempt() -> None:
    pool: Any = BrokenPool()
    registry: Any = SingleModelRegistry()
    model: Any = object()
    job = Job(
        id=uuid4(), kind="generation", task=None, owner="ann", privacy="private",
        latency="interactive", model=None, payload={},
    )  # fmt: skip
    search = DatabasePassageSearch(pool, registry, model, OwnerKeys(None), 1.0)
    with pytest.raises(NoBackendAvailable) as caught:
        search.passages(job, Grounding("what?", (), None, 3))
    assert caught.value.retry_after
