"""A producer, a caller's connection and a superuser's, on the tests' own servers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from vestry import (
    Vestry,
)
from workers.stack.dev_stack import DevStack


@pytest.fixture
def vestry(clean: DevStack) -> Iterator[Vestry]:
    with Vestry(clean.database_url("vestry_producer"), clean.keyring) as client:
        yield client


@pytest.fixture
def conn(clean: DevStack) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(clean.database_url("vestry_producer")) as caller:
        yield caller


@pytest.fixture
def root(clean: DevStack) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(clean.superuser_url, autocommit=True) as superuser:
        yield superuser
