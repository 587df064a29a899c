"""Eight worker processes share a limit of 60 requests a window, measured by the server's clock."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
import pytest

from tests.cloud_stack import KEY, catalogue_file, key_file
from tests.faultserver import FaultServer
from tests.waiting import eventually
from vestry import Generation, Vestry
from workers.home import CHECKOUT
from workers.stack.dev_stack import DevStack
from workers.stack.process import Command, base_environment, spawn, stop

LIMIT = 60
WINDOW_S = 10.0
"""Instead of a minute: the test does not depend on the length."""
WASTED_S = 60 / 0.9 - 60
"""Maximum excess over the window: 66.7 s for a minute's limit means that 90 % of it is used."""
WORKERS = 8
JOBS = 72


@contextmanager
def processes(stack: DevStack, cloud: FaultServer, directory: Path) -> Iterator[None]:
    """Eight workers of the cloud's bulk lane and a dispatcher, as their own processes."""
    common = {
        **base_environment(),
        "VESTRY_EMBEDDING_BACKEND": "echo",
        "VESTRY_CATALOGUE": str(catalogue_file(directory, round(LIMIT * 60 / WINDOW_S), WINDOW_S)),
        "VESTRY_BACKENDS": f"openai={cloud.url}/v1",
        "VESTRY_BACKEND_KEYS": f"openai={key_file(directory)}",
        "VESTRY_SLOTS": "1",
        "VESTRY_POLL_S": "0.3",
    }
    worker = {
        "VESTRY_PRIVACY": "shareable",
        "VESTRY_LANES": "shareable.bulk.cloud",
        "VESTRY_DATABASE_URL": stack.database_url("vestry_cloud"),
        "VESTRY_BROKER_URL": stack.broker_url("shareable"),
    }
    dispatcher = {
        "VESTRY_DATABASE_URL": stack.database_url("vestry_control"),
        "VESTRY_BROKER_URL": stack.broker_url("dispatcher"),
    }
    specs = [("workers.dispatcher", dispatcher), *[("workers.worker", worker)] * WORKERS]
    with ExitStack() as running:
        for number, (module, own) in enumerate(specs):
            command = Command(
                argv=[sys.executable, "-m", module],
                log=directory / f"{number}.log",
                environment=common | own,
                cwd=CHECKOUT,
            )
            running.callback(stop, spawn(command), command)
        yield


@pytest.mark.slow
def test_eight_workers_observe_and_use_a_rate_limit(clean: DevStack) -> None:
    with (
        tempfile.TemporaryDirectory() as directory,
        FaultServer(key=KEY) as cloud,  # canned responses: only the request times matter
        Vestry(clean.database_url(), clean.keyring) as vestry,
        psycopg.connect(clean.database_url(), autocommit=True) as conn,
        processes(clean, cloud, Path(directory)),
    ):
        route = "SELECT FROM vestry.routes WHERE pool = 'cloud'"
        eventually(lambda: bool(conn.execute(route).fetchall()), within=60)
        # A named model: other jobs without a permit would be rerouted to local models.
        requests = [Generation(f"Hello, {n}.", model="gpt-4o-mini") for n in range(JOBS)]
        jobs = vestry.enqueue_many(conn, requests, owner="o", privacy="shareable")
        for job in jobs:
            vestry.wait(job, timeout=120)
        receipts = [vestry.receipts(job) for job in jobs]
    times = sorted(request.at for request in cloud.calls("/chat/completions"))
    assert len(times) == JOBS, "each job has one request"
    assert {attempts[-1].locality for attempts in receipts} == {"cloud"}
    spans = [later - earlier for earlier, later in zip(times, times[LIMIT:], strict=False)]
    assert min(spans) >= WINDOW_S
    assert times[LIMIT] - times[0] <= WINDOW_S + WASTED_S, "too little of the limit was used"
