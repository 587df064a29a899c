"""The psycopg connection inside what a caller works with: psycopg itself, or SQLAlchemy.

SQLAlchemy is recognised by its shape and never imported.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import psycopg

from vestry.errors import InvalidInput

CONNECT_S: Final = 10.0
"""How long getting a connection may take before the database counts as unavailable."""
SyncConnection: TypeAlias = Any
"""psycopg `Connection`, or SQLAlchemy `Session` or `Connection` on psycopg 3."""
AsyncConnectionLike: TypeAlias = Any
"""psycopg `AsyncConnection`, or SQLAlchemy `AsyncSession` or `AsyncConnection` on psycopg 3."""


def sync_connection(conn: SyncConnection) -> psycopg.Connection[Any]:
    """The psycopg connection of the caller's transaction.

    Raises:
        InvalidInput: there is none in it.
    """
    if isinstance(conn, psycopg.Connection):
        return conn
    inner = getattr(conn, "connection", None)
    if callable(inner):
        # A Session: this also begins its transaction, so that its commit commits ours.
        inner = getattr(inner(), "connection", None)
    driver = getattr(inner, "driver_connection", None)
    if isinstance(driver, psycopg.Connection):
        return driver
    raise InvalidInput("conn", "is no psycopg 3 connection, nor a SQLAlchemy session on psycopg 3")


async def async_connection(conn: AsyncConnectionLike) -> psycopg.AsyncConnection[Any]:
    """The asynchronous psycopg connection of the caller's transaction.

    Raises:
        InvalidInput: there is none in it.
    """
    if isinstance(conn, psycopg.AsyncConnection):
        return conn
    connection = getattr(conn, "connection", None)
    inner = await connection() if callable(connection) else conn
    raw = getattr(inner, "get_raw_connection", None)
    if callable(raw):
        driver = getattr(await raw(), "driver_connection", None)
        if isinstance(driver, psycopg.AsyncConnection):
            return driver
    raise InvalidInput(
        "conn", "is no psycopg 3 AsyncConnection, nor a SQLAlchemy AsyncSession on psycopg 3"
    )
