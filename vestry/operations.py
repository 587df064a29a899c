"""Database work written once for both clients, as generators that do no I/O themselves.

A generator yields a `Query`, is sent its rows, and returns its outcome; `run` and `run_async` carry
the queries out. It may yield several at once, each of which returns rows: they share a round trip
and a transaction, and it is sent the rows of all, one after the other. A database error is
translated (`vestry.errors`) and raised inside the generator.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, LiteralString, TypeVar

import psycopg
from psycopg import sql
from psycopg.rows import tuple_row

from vestry.errors import DatabaseError, VestryError, from_sqlstate

Row = tuple[Any, ...]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Query:
    """One statement. `prepare` as in psycopg: True at once, None after it was used a few times."""

    text: LiteralString | sql.Composed
    params: Sequence[Any] | Mapping[str, Any] = ()
    prepare: bool | None = None


Operation = Generator[Query | tuple[Query, ...], list[Row], T]

# Around a call that takes several statements, so that it leaves all of its work or none.
SAVEPOINT = Query("SAVEPOINT vestry_call")
ROLLBACK = Query("ROLLBACK TO SAVEPOINT vestry_call")
RELEASE = Query("RELEASE SAVEPOINT vestry_call")


def single(query: Query) -> Operation[list[Row]]:
    """A single statement as steps."""
    return (yield query)


def execute(conn: psycopg.Connection[Any], steps: Operation[T]) -> T:
    """Carry out steps on a connection, in whatever transaction it is in."""
    try:
        asked = next(steps)
        while True:
            try:
                rows = _ask(conn, asked)
            except psycopg.Error as error:
                asked = steps.throw(translate(error))
            else:
                asked = steps.send(rows)
    except StopIteration as end:
        outcome: T = end.value
        return outcome


def _ask(conn: psycopg.Connection[Any], asked: Query | tuple[Query, ...]) -> list[Row]:
    if isinstance(asked, Query):
        with _sent(conn, asked) as cursor:
            return cursor.fetchall() if cursor.description else []
    # Under autocommit a pipeline is one transaction, which needs no BEGIN and COMMIT of its own.
    with conn.pipeline() if psycopg.Pipeline.is_supported() else conn.transaction():
        cursors = [_sent(conn, query) for query in asked]
        return [row for cursor in cursors for row in cursor.fetchall()]


def _sent(conn: psycopg.Connection[Any], query: Query) -> psycopg.Cursor[Row]:
    # A cursor class by name: the caller's connection may make others, with other rows.
    cursor = psycopg.Cursor(conn, row_factory=tuple_row)
    return cursor.execute(query.text, query.params, prepare=query.prepare, binary=True)


async def execute_async(conn: psycopg.AsyncConnection[Any], steps: Operation[T]) -> T:
    """`run`, on an asynchronous connection."""
    try:
        asked = next(steps)
        while True:
            try:
                rows = await _ask_async(conn, asked)
            except psycopg.Error as error:
                asked = steps.throw(translate(error))
            else:
                asked = steps.send(rows)
    except StopIteration as end:
        outcome: T = end.value
        return outcome


async def _ask_async(
    conn: psycopg.AsyncConnection[Any], asked: Query | tuple[Query, ...]
) -> list[Row]:
    if isinstance(asked, Query):
        async with await _sent_async(conn, asked) as cursor:
            return await cursor.fetchall() if cursor.description else []
    together = conn.pipeline() if psycopg.AsyncPipeline.is_supported() else conn.transaction()
    async with together:
        cursors = [await _sent_async(conn, query) for query in asked]
        return [row for cursor in cursors for row in await cursor.fetchall()]


async def _sent_async(conn: psycopg.AsyncConnection[Any], query: Query) -> psycopg.AsyncCursor[Row]:
    cursor = psycopg.AsyncCursor(conn, row_factory=tuple_row)
    return await cursor.execute(query.text, query.params, prepare=query.prepare, binary=True)


def translate(error: psycopg.Error) -> VestryError:
    """Ours for psycopg's, without its text, which may quote a row."""
    if error.sqlstate is None and not isinstance(error, psycopg.OperationalError):
        translated: VestryError = DatabaseError(None)
    else:
        translated = from_sqlstate(error.sqlstate, error.diag.message_primary)
    # Raised while the driver's error is handled; a traceback must not show that one.
    translated.__cause__ = None
    translated.__suppress_context__ = True
    return translated


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Translate psycopg's errors around what is not a step: connecting, committing."""
    try:
        yield
    except psycopg.Error as error:
        raise translate(error) from None
