"""Fixtures of tests over a whole stack."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.stacks import POOL
from vestry import Vestry
from workers.stack.background import BackgroundStack


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
