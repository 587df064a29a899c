"""What `vestry keys`, `forget` and `audit` work with: an operator's login, the key ring's source."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import psycopg

from vestry.cli.session import CONNECT_TIMEOUT_S
from vestry.crypto.keyring_source import COMMAND, FILE, KeySource
from vestry.errors import SettingsError
from vestry.operations import translated
from vestry.settings import resolve_operator


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
