"""Database access of commands: as a producer, and as an operator with the key ring."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import psycopg

from vestry.client import Vestry
from vestry.crypto.keyring import COMMAND, FILE, KeySource
from vestry.db.operations import translated
from vestry.errors import SettingsError
from vestry.settings import resolve, resolve_operator

CONNECT_TIMEOUT_S = 10
"""Seconds until a command fails because the database does not respond."""


@contextlib.contextmanager
def open_client() -> Iterator[Vestry]:
    """A client configured by the environment or by the embedded stack.

    Raises:
        Unavailable: the database cannot be reached. Raised at once: the library itself would retry.
    """
    with transaction():
        pass
    with Vestry() as vestry:
        yield vestry


@contextlib.contextmanager
def transaction() -> Iterator[psycopg.Connection[Any]]:
    """A producer's connection in a transaction, committed at the end of the block.

    Raises:
        Unavailable: the database cannot be reached.
    """
    with (
        translated(),
        psycopg.connect(resolve().conninfo, connect_timeout=CONNECT_TIMEOUT_S) as conn,
    ):
        yield conn


@contextlib.contextmanager
def operator_connection() -> Iterator[psycopg.Connection[Any]]:
    """A connection of the role vestry_operator in autocommit, for `keys`, `forget` and `audit`.

    Raises:
        SettingsError: no operator's login is configured.
        Unavailable: the database cannot be reached.
    """
    with (
        translated(),
        psycopg.connect(
            resolve_operator().conninfo, connect_timeout=CONNECT_TIMEOUT_S, autocommit=True
        ) as conn,
    ):
        yield conn


def key_source() -> KeySource:
    """The key ring's source.

    Raises:
        SettingsError: none is configured.
    """
    source = resolve_operator().source
    if source is None:
        raise SettingsError(f"no key ring: set {FILE} or {COMMAND}")
    return source
