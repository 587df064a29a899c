"""Fixtures: a declared stack with its clients, and logins to the shared servers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.stacks import POOL
from vestry import Vestry
from workers.stack.background import BackgroundStack
from workers.stack.dev_stack import DevStack


@pytest.fixture(scope="module")
def up(request: pytest.FixtureRequest) -> BackgroundStack:
    """The stack that the module declares: `pytestmark = pytest.mark.stack(…)`."""
    marker = request.node.get_closest_marker("stack")
    assert marker is not None, "the module declares no stack"
    running: BackgroundStack = POOL.get(marker.args[0])
    return running


@pytest.fixture(scope="module")
def vestry(up: BackgroundStack) -> Iterator[Vestry]:
    with Vestry(up.client["database_url"], up.client["keyring"]) as vestry:
        yield vestry


@pytest.fixture
def conn(up: BackgroundStack) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(up.client["database_url"], autocommit=True) as conn:
        yield conn


@pytest.fixture
def producer(clean: DevStack) -> Iterator[psycopg.Connection[Any]]:
    """A producer's login to the shared servers."""
    with psycopg.connect(clean.database_url("vestry_producer"), autocommit=True) as conn:
        yield conn


@pytest.fixture
def worker(clean: DevStack) -> Iterator[psycopg.Connection[Any]]:
    """A shareable worker's login to the shared servers."""
    with psycopg.connect(clean.database_url("vestry_shareable"), autocommit=True) as conn:
        yield conn


@pytest.fixture
def control(clean: DevStack) -> Iterator[psycopg.Connection[Any]]:
    """The dispatcher's and reconciler's login to the shared servers."""
    with psycopg.connect(clean.database_url("vestry_control"), autocommit=True) as conn:
        yield conn


@pytest.fixture
def admin(clean: DevStack) -> Iterator[psycopg.Connection[Any]]:
    """The superuser's login to the shared servers."""
    with psycopg.connect(clean.superuser_url, autocommit=True) as conn:
        yield conn
