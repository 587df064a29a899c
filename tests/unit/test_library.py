"""What answers are grounded in, while the database is away."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import psycopg
import pytest

from inference.errors import NoBackendAvailable
from tasks.grounding import PassageQuery
from tasks.protocol import Job
from workers.execution.passage_search import DatabasePassageSearch


class Fleet:
    """One model, which embeds everything as the same."""

    space = type("Space", (), {"name": "s"})

    def model(self, _: Any) -> Fleet:
        return self

    def embed(self, texts: list[str], *_: Any, **__: Any) -> list[list[float]]:
        return [[1.0] for _ in texts]


class Away:
    """A pool that has no connection to give."""

    def connection(self) -> Any:
        raise psycopg.OperationalError


def test_a_search_waits_for_the_database_and_costs_no_attempt() -> None:
    nowhere: Any = Away()
    fleet: Any = Fleet()
    model: Any = object()
    job = Job(
        id=uuid4(), kind="generation", task=None, owner="ann", privacy="private",
        latency="interactive", attempt=1, model=None, payload={},
    )  # fmt: skip
    library = DatabasePassageSearch(nowhere, fleet, model, None, 1.0)
    with pytest.raises(NoBackendAvailable) as waits:
        library.passages(job, PassageQuery("what?", (), None, 3))
    assert waits.value.retry_after
