"""Builds the handlers a worker serves, from its settings: the one place where models are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psycopg
from psycopg_pool import ConnectionPool

from inference.errors import InferenceError
from inference.protocol import SpaceSpec
from inference.registry import embedding_backend
from tasks.protocol import Handler
from tasks.registry import handlers
from workers.settings import Settings


def build(
    settings: Settings, pool: ConnectionPool[psycopg.Connection[Any]]
) -> Mapping[str, Handler]:
    """Load what the process serves and warm it up; kind to handler.

    Args:
        settings: which backends and models.
        pool: to declare the embedding space.

    Raises:
        SystemExit: a model cannot be loaded; the message says what to do.
    """
    try:
        backend = embedding_backend(
            settings.embedding_backend,
            model=settings.embedding_model,
            device=settings.device,
            threads=settings.threads,
        )
        backend.warm_up()
    except InferenceError as error:
        raise SystemExit(f"the embedding model cannot be used: {error}") from None
    return handlers(backend, declare_space(pool, backend.space))


def declare_space(pool: ConnectionPool[psycopg.Connection[Any]], space: SpaceSpec) -> int:
    """Have the space, its partition and its index; returns its id.

    Args:
        pool: connections of a worker role.
        space: as the backend tells it.

    Raises:
        SystemExit: a space of this name exists with another shape.
    """
    with pool.connection() as conn:
        try:
            row = conn.execute(
                "SELECT vestry.ensure_space_v1(%s, %s, %s, %s, %s, %s, %s, %s, %s)",
                [
                    space.name,
                    space.model,
                    space.revision,
                    space.dimension,
                    space.query_prefix,
                    space.document_prefix,
                    space.normalised,
                    space.precision,
                    space.library,
                ],
            ).fetchone()
        except psycopg.errors.DatabaseError as error:
            if error.sqlstate != "VY003":
                raise
            raise SystemExit(
                f"the space {space.name} exists with another model, revision or dimension; "
                "name the model differently or remove the old space"
            ) from None
    assert row is not None  # noqa: S101 - a function call has one row
    return int(row[0])
