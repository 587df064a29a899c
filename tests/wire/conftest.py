"""Fixtures for tests of backends: a real llama.cpp server behind a proxy with faults."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest

from inference.remote.egress import on_behalf_of
from tests.faultserver import FaultServer
from tests.llama_server import Llama
from tests.wire.factories import CLOUD_KEY


@pytest.fixture(scope="module")
def server(llama: Llama) -> Iterator[FaultServer]:
    with FaultServer(llama.url, upstream_key=llama.key, key=CLOUD_KEY) as running:
        yield running


@pytest.fixture(autouse=True)
def egress_jobs() -> Iterator[None]:
    """Set a current job: a request to a cloud is sent only on behalf of jobs."""
    with on_behalf_of([uuid4()]):
        yield


@pytest.fixture
def faulty(server: FaultServer) -> Iterator[FaultServer]:
    """The proxy, without a fault and without recorded requests."""
    server.fault = None
    server.requests.clear()
    yield server
    server.fault = None
