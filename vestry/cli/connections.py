"""The database as commands use it: the producer library, and a connection of our own."""

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
"""Seconds a person waits before hearing that the database does not answer."""


@contextlib.contextmanager
def open_client() -> Iterator[Vestry]:
    """The producer library, set up by environment or embedded stack.

    Raises:
        Unavailable: the database does not answer; at once, where the library itself is patient.
    """
    with transaction():
        pass
    with Vestry() as vestry:
        yield vestry


@contextlib.contextmanager
def transaction() -> Iterator[psycopg.Connection[Any]]:
    """A connection in a transaction, committed at the end.

    Raises:
        Unavailable: the database cannot be reached.
    """
    with (
        translated(),
        psycopg.connect(resolve().conninfo, connect_timeout=CONNECT_TIMEOUT_S) as conn,
    ):
        yield conn


# What `vestry keys`, `forget` and `audit` work with: an operator's login, the key ring's source.


@contextlib.contextmanager
def operator() -> Iterator[psycopg.Connection[Any]]:
    """A connection of the role vestry_operator, every statement committed at once.

    Raises:
        SettingsError: no login is named.
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
    """Where the key ring comes from.

    Raises:
        SettingsError: nothing says so.
    """
    source = resolve_operator().source
    if source is None:
        raise SettingsError(f"no key ring: set {FILE} or {COMMAND}")
    return source
