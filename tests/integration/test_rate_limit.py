"""Sixty requests in a window, kept to by eight worker processes and used, by the server's clock."""

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
"""In place of a minute: what is tested does not depend on its length."""
WASTED_S = 60 / 0.9 - 60
"""At most this much longer than a window, which of a minute uses 90 %."""
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
    wanted = [("workers.dispatcher", dispatcher), *[("workers.worker", worker)] * WORKERS]
    with ExitStack() as running:
        for number, (module, own) in enumerate(wanted):
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
        FaultServer(
            key=KEY
        ) as cloud,  # canned answers: what is looked at is when they are asked for
        Vestry(clean.database_url(), clean.keyring) as vestry,
        psycopg.connect(clean.database_url(), autocommit=True) as conn,
        processes(clean, cloud, Path(directory)),
    ):
        route = "SELECT FROM vestry.routes WHERE pool = 'cloud'"
        eventually(lambda: bool(conn.execute(route).fetchall()), within=60)
        # Of this model and no other: else what finds no turn would be answered at home.
        asked = [Generation(f"Hello, {n}.", model="gpt-4o-mini") for n in range(JOBS)]
        jobs = vestry.enqueue_many(conn, asked, owner="o", privacy="shareable")
        for job in jobs:
            vestry.wait(job, timeout=120)
        receipts = [vestry.receipts(job) for job in jobs]
    times = sorted(offer.at for offer in cloud.calls("/chat/completions"))
    assert len(times) == JOBS, "each job was asked for once"
    assert {found[-1].locality for found in receipts} == {"cloud"}
    crowded = [later - earlier for earlier, later in zip(times, times[LIMIT:], strict=False)]
    assert min(crowded) >= WINDOW_S
    assert times[LIMIT] - times[0] <= WINDOW_S + WASTED_S, "too little of the limit was used"
