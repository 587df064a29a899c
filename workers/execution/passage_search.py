"""The documents that answers are grounded in: a search by the worker itself, under its own role."""

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
from vestry.crypto.keyring import KeyRing
from vestry.crypto.owner_keys import OwnerKeys
from vestry.errors import UnknownSpace, VestryError
from vestry.jobs.generation import Grounding
from vestry.lanes import Latency
from vestry.operations import execute
from vestry.search.vector_search import SearchRequest, nearest
from workers.db import CONNECTION_ERRORS, session

RETRY_S = 5.0
"""When to search again after the database was away; no attempt is spent."""


class PassagesUnreadable(InferenceError):
    """The owner's passages cannot be read; is another key ring mounted?"""

    code = "unsealable"
    retryable = True


class DatabasePassageSearch:
    """See `tasks.protocol.Library`.

    Args:
        pool: connections of the worker's role, which sees what the role may see.
        fleet: has the model that embeds the query.
        embedding: that model; None where there is none.
        keyring: private workers': opens private passages.
        patience_s: longest search, in seconds.
    """

    def __init__(
        self,
        pool: ConnectionPool[psycopg.Connection[Any]],
        fleet: ModelRegistry,
        embedding: ModelEntry | None,
        keyring: KeyRing | None,
        patience_s: float,
    ) -> None:
        self._pool = pool
        self._patience_s = patience_s
        self._fleet = fleet
        self._embedding = embedding
        self._keys = OwnerKeys(keyring)

    def evict_expired(self) -> None:
        """Drop owners' keys that were kept for long enough."""
        self._keys.evict_expired()

    def passages(self, job: Job, grounding: Grounding) -> Sequence[Passage]:
        """The best passages of the job's owner and of the sources named, best first."""
        if self._embedding is None:
            raise ModelMissing("no embedding model is enabled to search with")
        model = self._fleet.model(self._embedding)
        assert grounding.query is not None  # noqa: S101 - tasks.generation requires one
        urgent = job.latency == Latency.INTERACTIVE
        vector = model.embed([grounding.query], "query", urgent=urgent)[0]
        request = SearchRequest(
            owner=job.owner,
            privacy=job.privacy,
            sources=grounding.sources or None,
            own_sources=grounding.own_sources,
            limit=grounding.limit,
        )
        steps = nearest(request, [float(x) for x in vector], model.space.name, self._keys)
        try:
            with session(self._pool, self._patience_s) as conn:
                hits = execute(conn, steps)
        except UnknownSpace:
            return ()
        except CONNECTION_ERRORS:
            raise NoBackendAvailable("database_away", retry_after=RETRY_S) from None
        except VestryError:
            raise PassagesUnreadable from None
        return [
            Passage(hit.owner, hit.source, hit.document, hit.date, hit.score, hit.text)
            for hit in hits
            if hit.text is not None
        ]
