"""One observed stack, on which every kind of job has run, with tokens in all that is private."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import psycopg
import pytest

from tests.echo_stack import SETTINGS
from tests.homes import temporary_home
from tests.privacy.needles import Marker
from tests.privacy.observed_up import start_observed
from tests.privacy.places import Stack
from tests.privacy.scenario import Scenario
from tests.privacy.watch import Watch
from vestry import Vestry
from workers.detached import Detached
from workers.home import Home


@dataclass(slots=True)
class Canary:
    """The stack after its jobs, and the marker in each class's content."""

    up: Detached
    stack: Stack
    private: Scenario
    shareable: Scenario
    seen: dict[str, list[tuple[str, bytes]]]
    """What each place held when the jobs had ended."""


@pytest.fixture(scope="module")
def canary() -> Iterator[Canary]:
    with (
        temporary_home() as home,
        start_observed(home, SETTINGS | {"VESTRY_LOG_LEVEL": "DEBUG"}) as up,
    ):
        client = up.client
        with (
            Watch(Home(home), client["supervisor_pid"]) as watch,
            Vestry(client["database_url"], client["keyring"]) as vestry,
            psycopg.connect(client["database_url"], autocommit=True) as conn,
        ):
            stack = Stack(Home(home), watch, client, [])
            private, shareable = (
                Scenario(privacy, Marker(), vestry, conn, stack.told)
                for privacy in ("private", "shareable")
            )
            for scenario in (private, shareable):
                scenario.enqueue()
            for scenario in (private, shareable):
                scenario.wait()
                scenario.search()
            private.crash()
            private.wait()
            with stack.superuser() as admin:
                admin.execute("ANALYZE")  # its statistics quote values
            seen = {name: list(read()) for name, read in stack.places().items()}
            yield Canary(up, stack, private, shareable, seen)
            assert not watch.errors, watch.errors
