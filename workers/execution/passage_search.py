"""Passage search for grounded generation: by the worker itself, under its own database role."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg_pool import ConnectionPool

from inference.catalogue.schema import ModelEntry
from inference.errors import InferenceError, ModelMissing, NoBackendAvailable
from inference.routing.model_registry import ModelRegistry
from tasks.grounding import Passage
from tasks.protocol import Job
from vestry.crypto.owner_keys import OwnerKeys
from vestry.db.operations import execute
from vestry.errors import UnknownSpace, VestryError
from vestry.jobs.generation import Grounding
from vestry.lanes import Latency
from vestry.search.vector_search import SearchRequest, nearest
from workers.db import CONNECTION_ERRORS, session

RETRY_S = 5.0
"""Delay of the retry if the database is unavailable; no attempt is spent."""


class PassagesUnreadable(InferenceError):
    """The owner's passages cannot be decrypted."""

    default_message = (
        "The owner's passages cannot be read; check that the key ring is the right one."
    )
    code = "unsealable"
    retryable = True


class DatabasePassageSearch:
    """Searches the database; see `tasks.protocol.PassageSearch`.

    Args:
        pool: connections of the worker's role, which limits what a search can find.
        models: provides the model that embeds the query.
        embedding: that model; None if none is enabled.
        keys: open private passages; the cache of the process.
        timeout_s: longest search, in seconds.
    """

    def __init__(
        self,
        pool: ConnectionPool[psycopg.Connection[Any]],
        models: ModelRegistry,
        embedding: ModelEntry | None,
        keys: OwnerKeys,
        timeout_s: float,
    ) -> None:
        self._pool = pool
        self._timeout_s = timeout_s
        self._models = models
        self._embedding = embedding
        self._keys = keys

    def passages(self, job: Job, grounding: Grounding) -> Sequence[Passage]:
        """The best passages of the job's owner and of the grounding's sources, best first."""
        if self._embedding is None:
            raise ModelMissing("no embedding model is enabled to search with")
        model = self._models.model(self._embedding)
        urgent = job.latency == Latency.INTERACTIVE
        assert grounding.query is not None  # noqa: S101 - tasks.generation requires one
        vector = model.embed([grounding.query], "query", urgent=urgent)[0]
        request = SearchRequest(
            owner=job.owner,
            privacy=job.privacy,
            sources=grounding.sources or None,
            own_sources=grounding.own_sources,
            limit=grounding.limit,
        )
        operation = nearest(request, [float(x) for x in vector], model.space.name, self._keys)
        try:
            with session(self._pool, self._timeout_s) as conn:
                hits = execute(conn, operation)
        except UnknownSpace:
            return ()
        except CONNECTION_ERRORS:
            raise NoBackendAvailable("database_unavailable", retry_after=RETRY_S) from None
        except VestryError:
            raise PassagesUnreadable from None
        return [
            Passage(hit.owner, hit.source, hit.document, hit.date, hit.score, hit.text)
            for hit in hits
            if hit.text is not None
        ]
