"""The psycopg connection inside what a caller works with: psycopg itself, or SQLAlchemy.

SQLAlchemy is recognised by its shape and never imported.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final, TypeAlias

import psycopg
from psycopg.pq import TransactionStatus

from vestry.errors import InvalidInput
from vestry.operations import RELEASE, ROLLBACK, SAVEPOINT, execute, execute_async, single

# All or nothing within a transaction that is the caller's.


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """No transaction: each statement by itself."""
    yield


@contextlib.contextmanager
def all_or_nothing(conn: psycopg.Connection[Any]) -> Iterator[None]:
    """Within the caller's transaction, undo the part done so far if something fails.

    psycopg's own `transaction()` would commit where a transaction has yet to begin.
    """
    if conn.autocommit and conn.info.transaction_status == TransactionStatus.IDLE:
        with conn.transaction():
            yield
        return
    execute(conn, single(SAVEPOINT))
    try:
        yield
    except BaseException:
        if conn.info.transaction_status in {TransactionStatus.INTRANS, TransactionStatus.INERROR}:
            execute(conn, single(ROLLBACK))
        raise
    execute(conn, single(RELEASE))


@contextlib.asynccontextmanager
async def plain_async() -> AsyncIterator[None]:
    """No transaction: each statement by itself."""
    yield


@contextlib.asynccontextmanager
async def all_or_nothing_async(conn: psycopg.AsyncConnection[Any]) -> AsyncIterator[None]:
    """Within the caller's transaction, undo the part done so far if something fails.

    psycopg's own `transaction()` would commit where a transaction has yet to begin.
    """
    if conn.autocommit and conn.info.transaction_status == TransactionStatus.IDLE:
        async with conn.transaction():
            yield
        return
    await execute_async(conn, single(SAVEPOINT))
    try:
        yield
    except BaseException:
        if conn.info.transaction_status in {TransactionStatus.INTRANS, TransactionStatus.INERROR}:
            await execute_async(conn, single(ROLLBACK))
        raise
    await execute_async(conn, single(RELEASE))


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
    # A Session hands out its Connection, and with it begins its transaction.
    connection = inner() if callable(inner) else conn
    driver = getattr(getattr(connection, "connection", None), "driver_connection", None)
    if isinstance(driver, psycopg.Connection):
        # Work done past SQLAlchemy does not begin its transaction, and without one its commit()
        # does nothing.
        if not connection.in_transaction():
            connection.begin()
        return driver
    raise InvalidInput("conn", "is no psycopg 3 connection, nor a SQLAlchemy session on psycopg 3")


async def async_connection(conn: AsyncConnectionLike) -> psycopg.AsyncConnection[Any]:
    """The asynchronous psycopg connection of the caller's transaction.

    Raises:
        InvalidInput: there is none in it.
    """
    if isinstance(conn, psycopg.AsyncConnection):
        return conn
    connection = conn
    if not hasattr(conn, "get_raw_connection"):
        inner = getattr(conn, "connection", None)
        connection = await inner() if inspect.iscoroutinefunction(inner) else None
    raw = getattr(connection, "get_raw_connection", None)
    if callable(raw):
        driver = getattr(await raw(), "driver_connection", None)
        if isinstance(driver, psycopg.AsyncConnection):
            if not connection.in_transaction():
                await connection.begin()
            return driver
    raise InvalidInput(
        "conn", "is no psycopg 3 AsyncConnection, nor a SQLAlchemy AsyncSession on psycopg 3"
    )
