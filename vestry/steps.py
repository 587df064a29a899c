"""Database work written once for both clients, as generators that do no I/O themselves.

A generator yields a `Query`, is sent its rows, and returns its outcome; `run` and `run_async` carry
the queries out. A database error is translated (`vestry.errors`) and raised inside the generator.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Sequence
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
    params: Sequence[Any] = ()
    prepare: bool | None = None


Steps = Generator[Query, list[Row], T]

# Around a call that takes several statements, so that it leaves all of its work or none.
SAVEPOINT = Query("SAVEPOINT vestry_call")
ROLLBACK = Query("ROLLBACK TO SAVEPOINT vestry_call")
RELEASE = Query("RELEASE SAVEPOINT vestry_call")


def one(query: Query) -> Steps[list[Row]]:
    """A single statement as steps."""
    return (yield query)


def run(conn: psycopg.Connection[Any], steps: Steps[T]) -> T:
    """Carry out steps on a connection, in whatever transaction it is in."""
    # Cursor classes by name: the caller's connection may make others, with other rows.
    with psycopg.Cursor(conn, row_factory=tuple_row) as cursor:
        try:
            query = next(steps)
            while True:
                try:
                    cursor.execute(query.text, query.params, prepare=query.prepare, binary=True)
                    rows = cursor.fetchall() if cursor.description else []
                except psycopg.Error as error:
                    query = steps.throw(translate(error))
                else:
                    query = steps.send(rows)
        except StopIteration as end:
            outcome: T = end.value
            return outcome


async def run_async(conn: psycopg.AsyncConnection[Any], steps: Steps[T]) -> T:
    """`run`, on an asynchronous connection."""
    async with psycopg.AsyncCursor(conn, row_factory=tuple_row) as cursor:
        try:
            query = next(steps)
            while True:
                try:
                    await cursor.execute(
                        query.text, query.params, prepare=query.prepare, binary=True
                    )
                    rows = await cursor.fetchall() if cursor.description else []
                except psycopg.Error as error:
                    query = steps.throw(translate(error))
                else:
                    query = steps.send(rows)
        except StopIteration as end:
            outcome: T = end.value
            return outcome


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
