"""What the tests over a whole stack share; each module says in its own `up` which stack that is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.echo_stack import echo_stack
from vestry import Vestry
from workers.stack.background import BackgroundStack


@pytest.fixture(scope="session")
def echo_up() -> Iterator[BackgroundStack]:
    """One stack on the echo backend, for modules that name owners of their own."""
    with echo_stack(flower=True) as running:
        yield running


@pytest.fixture(scope="module")
def vestry(up: BackgroundStack) -> Iterator[Vestry]:
    with Vestry(up.client["database_url"], up.client["keyring"]) as vestry:
        yield vestry


@pytest.fixture
def conn(up: BackgroundStack) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(up.client["database_url"], autocommit=True) as conn:
        yield conn
