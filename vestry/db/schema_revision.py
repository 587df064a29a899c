"""The database schema that this version needs: Alembic's revision, and the release of pgvector."""

from __future__ import annotations

import re
from typing import Any, Final

import psycopg

SCHEMA_REVISION: Final = "0001_initial"
"""Head of migrations/, which is not in the wheel."""
MINIMUM_PGVECTOR: Final = (0, 8, 3)
"""pgvector before 0.8.3 can corrupt an HNSW index on vacuum (its changelog, 0.8.3)."""


class SchemaError(RuntimeError):
    """The database cannot be used by this version; the message says what to do."""


def read_revision(conn: psycopg.Connection[Any]) -> str | None:
    """The schema's revision; None if there is no schema, or this role may not read it.

    Args:
        conn: a connection; a failed read aborts a transaction that it is in.
    """
    try:
        row = conn.execute("SELECT version_num FROM vestry.alembic_version").fetchone()
    except (
        psycopg.errors.UndefinedTable,
        psycopg.errors.InvalidSchemaName,
        psycopg.errors.InsufficientPrivilege,
    ):
        return None
    return None if row is None else str(row[0])


def revision_fault(revision: str | None) -> str | None:
    """Sentence that says what to do about another revision; None for SCHEMA_REVISION."""
    if revision == SCHEMA_REVISION:
        return None
    if revision is None:
        return "the database has no schema of this version: run `python -m workers.migrate`"
    return (
        f"the database's schema is at revision {revision}, and this version needs "
        f"{SCHEMA_REVISION}: run `python -m workers.migrate`, or, if the schema is newer, update "
        "this installation"
    )


def pgvector_fault(release: str | None, available: str | None = None) -> str | None:
    """Sentence that says what to do about a missing or old pgvector; None if it is new enough.

    Args:
        release: such as `0.8.3` or `0.8.3-dev`; None if the database does not have the extension.
        available: the release that the server can create in it; None if it has none.
    """
    if release is not None and _numbers(release) >= MINIMUM_PGVECTOR:
        return None
    needed = ".".join(map(str, MINIMUM_PGVECTOR))
    if release is None and available is not None:
        return pgvector_fault(available) or (
            "pgvector is not created in this database: run `python -m workers.migrate`"
        )
    if release is None:
        return f"pgvector is not installed: install {needed} or newer on the database server"
    return (
        f"pgvector is {release}, and {needed} or newer is needed: install it on the database "
        "server, then run `ALTER EXTENSION vector UPDATE` in the database"
    )


def _numbers(release: str) -> tuple[int, ...]:
    """Numbers of a release, without a suffix such as `-dev`."""
    leading = re.match(r"\d+(?:\.\d+)*", release)
    return tuple(map(int, leading[0].split("."))) if leading else ()
