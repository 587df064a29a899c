"""Passage search with an unavailable database."""

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


class Fleet:
    """One model, with the same vector for every text."""

    space = type("Space", (), {"name": "s"})

    def model(self, _: Any) -> Fleet:
        return self

    def embed(self, texts: list[str], *_: Any, **__: Any) -> list[list[float]]:
        return [[1.0] for _ in texts]


class Away:
    """A pool without a connection."""

    def connection(self) -> Any:
        raise psycopg.OperationalError


def test_without_a_database_a_search_is_retried_without_an_attempt() -> None:
    nowhere: Any = Away()
    fleet: Any = Fleet()
    model: Any = object()
    job = Job(
        id=uuid4(), kind="generation", task=None, owner="ann", privacy="private",
        latency="interactive", attempt=1, model=None, payload={},
    )  # fmt: skip
    library = DatabasePassageSearch(nowhere, fleet, model, OwnerKeys(None), 1.0)
    with pytest.raises(NoBackendAvailable) as waits:
        library.passages(job, Grounding("what?", (), None, 3))
    assert waits.value.retry_after
