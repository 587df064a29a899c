"""All or nothing within a transaction that is the caller's."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus

from vestry.steps import RELEASE, ROLLBACK, SAVEPOINT, one, run, run_async


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
    run(conn, one(SAVEPOINT))
    try:
        yield
    except BaseException:
        if conn.info.transaction_status in {TransactionStatus.INTRANS, TransactionStatus.INERROR}:
            run(conn, one(ROLLBACK))
        raise
    run(conn, one(RELEASE))


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
    await run_async(conn, one(SAVEPOINT))
    try:
        yield
    except BaseException:
        if conn.info.transaction_status in {TransactionStatus.INTRANS, TransactionStatus.INERROR}:
            await run_async(conn, one(ROLLBACK))
        raise
    await run_async(conn, one(RELEASE))
