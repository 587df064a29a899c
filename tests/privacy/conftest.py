"""One observed stack on which every kind of job has run, with tokens in every private field."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from inference.catalogue.loader import SHIPPED
from tests.cluster_template import migrated_home
from tests.faultserver import FaultServer
from tests.privacy import kinds
from tests.privacy.locations import Stack
from tests.privacy.needles import Marker
from tests.privacy.observed_up import start_observed
from tests.privacy.scenario import Scenario
from tests.privacy.watch import Watch
from tests.run_dir import timed_start
from tests.stacks import ECHO_SETTINGS, POOL
from vestry import Vestry
from workers.home import Home, write_private
from workers.stack.background import BackgroundStack

CLOUD_KEY = "a cloud's key"


@dataclass(slots=True)
class Canary:
    """The stack after its jobs, and each class's scenario with its marker."""

    up: BackgroundStack
    stack: Stack
    private: Scenario
    shareable: Scenario
    seen: dict[str, list[tuple[str, bytes]]]
    """The contents of each location after the jobs ended."""
    keyring: bytes
    """The key ring at that time; a later test may rotate it."""


@dataclass(frozen=True, slots=True)
class ObservedStack:
    """The declaration of the canary's stack, shared by the modules that test it."""

    name: str = "canary"

    @contextmanager
    def start(self) -> Iterator[Canary]:
        """Start the stack, run every job on it, and read every location once."""
        with migrated_home() as home, FaultServer(key=CLOUD_KEY) as cloud:
            settings = _settings(home, cloud)
            with start_observed(home, settings) as up:
                client = up.client
                with (
                    Watch(Home(home), client["supervisor_pid"]) as watch,
                    Vestry(client["database_url"], client["keyring"]) as vestry,
                    psycopg.connect(client["database_url"], autocommit=True) as conn,
                ):
                    stack = Stack(Home(home), watch, client, [], cloud)
                    private, shareable = (
                        Scenario(privacy, Marker(), vestry, conn, stack.errors)
                        for privacy in ("private", "shareable")
                    )
                    with timed_start("the canary's jobs"):
                        _run(up, private, shareable)
                    with stack.superuser() as admin:
                        admin.execute("ANALYZE")  # its statistics quote values
                    with timed_start("the canary's first reading"):
                        seen = {name: list(read()) for name, read in stack.locations().items()}
                    ring = stack.home.keyring.read_bytes()
                    yield Canary(up, stack, private, shareable, seen, ring)
                    assert not watch.errors, watch.errors


CANARY = ObservedStack()


@pytest.fixture(scope="module")
def canary() -> Canary:
    """The observed stack after its jobs."""
    running: Canary = POOL.get(CANARY)
    return running


def _settings(home: Path, cloud: FaultServer) -> dict[str, str]:
    """The echo backend, an unreachable local server, and a cloud that records requests."""
    catalogue, key = home / "catalogue.yaml", home / "cloud.key"
    catalogue.write_text(kinds.catalogue(SHIPPED.read_text(encoding="utf-8")), encoding="utf-8")
    write_private(key, CLOUD_KEY)
    return ECHO_SETTINGS | {
        "VESTRY_LOG_LEVEL": "DEBUG",
        "VESTRY_LLAMA": "off",
        "VESTRY_OLLAMA": "off",
        "VESTRY_CATALOGUE": str(catalogue),
        "VESTRY_BACKENDS": f"openai={cloud.url}/v1",
        "VESTRY_BACKEND_KEYS": f"openai={key}",
    }


def _run(up: BackgroundStack, private: Scenario, shareable: Scenario) -> None:
    for scenario in (private, shareable):
        kinds.enqueue(scenario)
        scenario.stop_running()
        scenario.enqueue()
    kinds.kill_a_reader(private, up)
    for scenario in (private, shareable):
        scenario.wait()
        scenario.search()
    kinds.grounded(private)
    private.crash()
    private.wait()
