"""The cloud goes away and comes back, under real workers and clients: nothing fails, all of it is told.

The clouds are a real llama.cpp server behind one that refuses connections on request. At home the echo
backend stands in for local models: what is looked at is where jobs go, and when.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import psycopg
import pytest

from tests.cloud_stack import KEY, cloud_stack
from tests.faultserver import Fault, FaultServer, empty, rate_limited, status
from tests.llama import llama_server
from tests.waiting import BULK_S, eventually
from vestry import Classification, Embedding, Generation, JobRef, Rerank, Vestry
from vestry.db.receipts import Receipt
from workers.home import CHECKOUT, Home
from workers.stack.background import BackgroundStack
from workers.stack.postgres import SUPERUSER, PostgresServer

SECRET = "sekrit-doubt"
ADEQUATE_AT_HOME = 110
ONLY_IN_THE_CLOUD = 50
ALWAYS_AT_HOME = 40


@pytest.fixture(scope="module")
def cloud() -> Iterator[FaultServer]:
    with (
        llama_server() as llama,
        FaultServer(llama.url, upstream_key=llama.key, key=KEY) as server,
    ):
        yield server


@pytest.fixture(scope="module")
def up(cloud: FaultServer) -> Iterator[BackgroundStack]:
    with cloud_stack(cloud) as running:
        yield running


def enqueue(vestry: Vestry, conn: psycopg.Connection[Any]) -> dict[str, list[UUID]]:
    """200 shareable jobs, mixed, in bulk and interactive; and private ones among them."""
    jobs: dict[str, list[UUID]] = {"home": [], "cloud": [], "always": [], "private": []}

    def add(group: str, number: int, job: Any, **more: Any) -> None:
        given = {"owner": f"o{number % 7}", "privacy": "shareable"} | more
        given["latency"] = "interactive" if number % 5 == 0 else "bulk"
        jobs[group].append(vestry.enqueue(conn, job, **given).id)

    labels = ["psalm", "letter"]
    for n in range(ADEQUATE_AT_HOME):
        if n % 3:
            add("home", n, Generation(f"Say hello, {n}.", max_tokens=4))
        else:
            add("home", n, Classification(f"a song of {n}", labels), quality="best")
    for n in range(ONLY_IN_THE_CLOUD):
        add("cloud", n, Generation(f"A guide, {n}.", max_tokens=4), task="study-guide")
    for n in range(ALWAYS_AT_HOME):
        job = Embedding(texts=[f"text {n}"]) if n % 2 else Rerank("a word", ["a word", "another"])
        add("always", n, job)
    for n in range(20):
        add("private", n, Generation(f"{SECRET} {n}", max_tokens=4), privacy="private")
    return jobs


def ask(vestry: Vestry, conn: psycopg.Connection[Any], prompt: str) -> JobRef:
    """A request that a cloud would serve, were all well, and that somebody waits for."""
    return vestry.enqueue(
        conn, Generation(prompt, max_tokens=4), owner="o", privacy="shareable",
        latency="interactive",
    )  # fmt: skip


def last_receipts(vestry: Vestry, jobs: list[UUID]) -> list[Receipt]:
    return [vestry.receipts(job)[-1] for job in jobs]


def states(vestry: Vestry, jobs: list[UUID]) -> set[str]:
    return {found.state for found in vestry.statuses(jobs)}


def breakers(up: BackgroundStack) -> dict[str, str]:
    """As `vestry lanes` shows them."""
    done = subprocess.run(
        [sys.executable, "-c", "from vestry.cli import main; main()", "lanes", "--json"],
        cwd=CHECKOUT, env=os.environ | {"VESTRY_HOME": str(up.home)}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    return {one["backend"]: one["breaker"] for one in json.loads(done.stdout)["backends"]}


@pytest.mark.timeout(900)
def test_jobs_degrade_or_wait_during_an_outage_and_return_after_it(
    up: BackgroundStack, vestry: Vestry, conn: psycopg.Connection[Any], cloud: FaultServer
) -> None:
    cloud.stop_listening()
    jobs = enqueue(vestry, conn)
    shareable = jobs["home"] + jobs["cloud"] + jobs["always"]
    assert len(shareable) == 200

    done = [*jobs["home"], *jobs["always"], *jobs["private"]]
    eventually(lambda: states(vestry, done) == {"succeeded"}, within=BULK_S)
    for receipt in last_receipts(vestry, jobs["home"]):
        assert (receipt.served.model, receipt.locality, receipt.degraded) == ("echo", "local", True)
        assert receipt.intended.model == "gpt-4o-mini"
        assert receipt.reason == "backend_unavailable"
    assert {found.degraded for found in vestry.statuses(jobs["home"])} == {True}
    assert {r.degraded for r in last_receipts(vestry, jobs["always"] + jobs["private"])} == {False}
    assert states(vestry, jobs["cloud"]) <= {"queued", "running"}
    assert {found.attempt for found in vestry.statuses(jobs["cloud"])} <= {0, 1, 2}

    eventually(lambda: "open" in breakers(up).values())
    eventually(lambda: "half_open" in breakers(up).values())
    cloud.listen()
    eventually(lambda: states(vestry, jobs["cloud"]) == {"succeeded"}, within=BULK_S)
    for receipt in last_receipts(vestry, jobs["cloud"]):
        assert (receipt.served.model, receipt.locality) == ("claude-opus-4-8", "cloud")
        assert not receipt.degraded
        assert receipt.cost is not None
        assert receipt.cost > 0
    eventually(lambda: breakers(up).get("anthropic", "closed") == "closed")

    # Once it is back, what comes next goes there again, and in the right lane from the start.
    def goes_to_the_cloud() -> bool:
        job = ask(vestry, conn, "And now?")
        vestry.wait(job, timeout=60)
        return vestry.receipts(job)[-1].locality == "cloud"

    eventually(goes_to_the_cloud)
    assert cloud.offers
    assert not cloud.was_offered(SECRET)


@pytest.mark.parametrize(
    "told",
    [
        (empty(), "bad_answer"),
        (status(401), "backend_unauthorised"),
        (status(404), "model_missing"),
    ],
    ids=["an empty answer", "a rejected key", "no such model"],
)
def test_non_retryable_cloud_fault_is_called_once_and_degraded(
    up: BackgroundStack, vestry: Vestry, conn: Any, cloud: FaultServer, told: tuple[Fault, str]
) -> None:
    fault, reason = told

    def well() -> bool:
        with psycopg.connect(PostgresServer(Home(up.home)).url(SUPERUSER), autocommit=True) as root:
            root.execute("DELETE FROM vestry.backend_health")
        return not breakers(up)

    eventually(well)
    before = len(cloud.calls("/chat/completions"))
    cloud.fault = fault
    job = ask(vestry, conn, "Hello?")
    vestry.wait(job, timeout=60)
    cloud.fault = None
    receipt = vestry.receipts(job)[-1]
    assert (receipt.locality, receipt.degraded, receipt.reason) == ("local", True, reason)
    assert len(cloud.calls("/chat/completions")) == before + 1
    eventually(well)


def test_rate_limited_cloud_is_not_called_before_its_retry_after(
    vestry: Vestry, conn: psycopg.Connection[Any], cloud: FaultServer
) -> None:
    cloud.fault = rate_limited("2")
    job = ask(vestry, conn, "Hello?")
    vestry.wait(job, timeout=60)
    cloud.fault = None
    receipt = vestry.receipts(job)[-1]
    assert (receipt.locality, receipt.degraded, receipt.reason) == ("local", True, "rate_limited")
    offered = cloud.calls("/chat/completions")
    again = ask(vestry, conn, "At once?")
    vestry.wait(again, timeout=60)
    # On a very busy machine it may be time again.
    later = cloud.calls("/chat/completions")[len(offered) :]
    assert all(call.at - offered[-1].at >= 2 for call in later), "it was called before it said so"
    if not later:
        assert vestry.receipts(again)[-1].reason == "rate_limited"
