"""Fixtures for tests of a worker's parts: database logins, and a proxy in front of Postgres."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.faults.proxy import Proxy
from vestry import Vestry
from workers.stack.dev_stack import DevStack


@pytest.fixture
def vestry(clean: DevStack) -> Iterator[Vestry]:
    with Vestry(clean.database_url("vestry_producer"), clean.keyring) as client:
        yield client


@pytest.fixture
def conn(clean: DevStack) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(clean.database_url("vestry_producer"), autocommit=True) as caller:
        yield caller


@pytest.fixture
def proxy(clean: DevStack) -> Iterator[Proxy]:
    """A proxy in front of Postgres."""
    with Proxy(clean.postgres.port) as running:
        yield running


@pytest.fixture
def through_proxy(proxy: Proxy) -> Callable[[str], str]:
    """Converts a database URL to one through the proxy."""
    return lambda url: make_conninfo(**(conninfo_to_dict(url) | {"port": str(proxy.port)}))
