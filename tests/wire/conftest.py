"""Fixtures for backends: a real llama.cpp server, and a proxy with faults in front of it."""

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
def for_a_job() -> Iterator[None]:
    """Name a job: requests to a cloud are sent for jobs only."""
    with on_behalf_of([uuid4()]):
        yield


@pytest.fixture
def faulty(server: FaultServer) -> Iterator[FaultServer]:
    """The proxy, at first without a fault and without recorded requests."""
    server.fault = None
    server.requests.clear()
    yield server
    server.fault = None
