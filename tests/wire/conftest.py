"""Backends on the wire: real SDKs, a real llama.cpp server, and one that misbehaves in front of it."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest

from inference.remote.egress import on_behalf_of
from tests.faultserver import FaultServer
from tests.llama import Llama
from tests.wire.making import CLOUD_KEY


@pytest.fixture(scope="module")
def server(llama: Llama) -> Iterator[FaultServer]:
    with FaultServer(llama.url, upstream_key=llama.key, key=CLOUD_KEY) as running:
        yield running


@pytest.fixture(autouse=True)
def for_a_job() -> Iterator[None]:
    """Nothing is sent to a cloud for nobody."""
    with on_behalf_of([uuid4()]):
        yield


@pytest.fixture
def faulty(server: FaultServer) -> Iterator[FaultServer]:
    """The server, well at first, with nothing offered yet."""
    server.fault = None
    server.offers.clear()
    yield server
    server.fault = None
