"""A cloud outage under real workers and clients: no job fails, and receipts record every degradation.

The clouds are a real llama.cpp server behind a proxy that refuses connections on request. The echo
backend replaces local models: the tests look at where and when jobs are served.
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
from tests.llama_server import llama_server
from tests.waiting import BULK_S, eventually
from vestry import Classification, Embedding, Generation, JobRef, Rerank, Vestry
from vestry.db.receipts import Receipt
from workers.home import CHECKOUT, Home
from workers.stack.background import BackgroundStack
from workers.stack.postgres import SUPERUSER, PostgresServer

SECRET = "sekrit-doubt"
LOCAL_SUFFICES = 110
CLOUD_ONLY = 50
LOCAL_ONLY = 40


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
    """Enqueue 200 shareable jobs, bulk and interactive, and 20 private ones."""
    jobs: dict[str, list[UUID]] = {"degraded": [], "cloud": [], "local": [], "private": []}

    def add(group: str, number: int, job: Any, **more: Any) -> None:
        options = {"owner": f"o{number % 7}", "privacy": "shareable"} | more
        options["latency"] = "interactive" if number % 5 == 0 else "bulk"
        jobs[group].append(vestry.enqueue(conn, job, **options).id)

    labels = ["psalm", "letter"]
    for n in range(LOCAL_SUFFICES):
        if n % 3:
            add("degraded", n, Generation(f"Say hello, {n}.", max_tokens=4))
        else:
            add("degraded", n, Classification(f"a song of {n}", labels), quality="best")
    for n in range(CLOUD_ONLY):
        add("cloud", n, Generation(f"A guide, {n}.", max_tokens=4), task="study-guide")
    for n in range(LOCAL_ONLY):
        job = Embedding(texts=[f"text {n}"]) if n % 2 else Rerank("a word", ["a word", "another"])
        add("local", n, job)
    for n in range(20):
        add("private", n, Generation(f"{SECRET} {n}", max_tokens=4), privacy="private")
    return jobs


def request(vestry: Vestry, conn: psycopg.Connection[Any], prompt: str) -> JobRef:
    """Enqueue an interactive job that a healthy cloud serves."""
    return vestry.enqueue(
        conn, Generation(prompt, max_tokens=4), owner="o", privacy="shareable",
        latency="interactive",
    )  # fmt: skip


def last_receipts(vestry: Vestry, jobs: list[UUID]) -> list[Receipt]:
    return [vestry.receipts(job)[-1] for job in jobs]


def states(vestry: Vestry, jobs: list[UUID]) -> set[str]:
    return {status.state for status in vestry.statuses(jobs)}


def breakers(up: BackgroundStack) -> dict[str, str]:
    """The state of each backend's breaker, by `vestry lanes`."""
    done = subprocess.run(
        [sys.executable, "-c", "from vestry.cli import main; main()", "lanes", "--json"],
        cwd=CHECKOUT, env=os.environ | {"VESTRY_HOME": str(up.home)}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    return {one["backend"]: one["breaker"] for one in json.loads(done.stdout)["backends"]}


def close_breakers(up: BackgroundStack) -> bool:
    """Delete the state of all breakers. Returns whether none is left."""
    with psycopg.connect(PostgresServer(Home(up.home)).url(SUPERUSER), autocommit=True) as root:
        root.execute("DELETE FROM vestry.backend_health")
    return not breakers(up)


@pytest.fixture(autouse=True)
def closed_breakers(up: BackgroundStack) -> Iterator[None]:
    """Closed breakers before and after each test: the tests run in any order."""
    eventually(lambda: close_breakers(up))
    yield
    eventually(lambda: close_breakers(up))


@pytest.mark.timeout(900)
def test_jobs_degrade_or_wait_during_an_outage_and_return_after_it(
    up: BackgroundStack, vestry: Vestry, conn: psycopg.Connection[Any], cloud: FaultServer
) -> None:
    cloud.stop_listening()
    jobs = enqueue(vestry, conn)
    shareable = jobs["degraded"] + jobs["cloud"] + jobs["local"]
    assert len(shareable) == 200

    done = [*jobs["degraded"], *jobs["local"], *jobs["private"]]
    eventually(lambda: states(vestry, done) == {"succeeded"}, within=BULK_S)
    for receipt in last_receipts(vestry, jobs["degraded"]):
        assert (receipt.served.model, receipt.locality, receipt.degraded) == ("echo", "local", True)
        assert receipt.intended.model == "gpt-4o-mini"
        assert receipt.reason == "backend_unavailable"
    assert {status.degraded for status in vestry.statuses(jobs["degraded"])} == {True}
    assert {r.degraded for r in last_receipts(vestry, jobs["local"] + jobs["private"])} == {False}
    assert states(vestry, jobs["cloud"]) <= {"queued", "running"}
    assert {status.attempt for status in vestry.statuses(jobs["cloud"])} <= {0, 1, 2}

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

    # After the outage new jobs are served by the cloud again.
    def cloud_serves() -> bool:
        job = request(vestry, conn, "And now?")
        vestry.wait(job, timeout=60)
        return vestry.receipts(job)[-1].locality == "cloud"

    eventually(cloud_serves)
    assert cloud.requests
    assert not cloud.received(SECRET)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (empty(), "bad_answer"),
        (status(401), "backend_unauthorised"),
        (status(404), "model_missing"),
    ],
    ids=["an empty response", "a rejected key", "no such model"],
)
def test_failed_cloud_response_degrades_the_job_after_one_call(
    vestry: Vestry, conn: Any, cloud: FaultServer, fault: Fault, reason: str
) -> None:
    before = len(cloud.calls("/chat/completions"))
    cloud.fault = fault
    job = request(vestry, conn, "Hello?")
    vestry.wait(job, timeout=60)
    cloud.fault = None
    receipt = vestry.receipts(job)[-1]
    assert (receipt.locality, receipt.degraded, receipt.reason) == ("local", True, reason)
    assert len(cloud.calls("/chat/completions")) == before + 1


def test_rate_limited_cloud_is_not_called_before_its_retry_after(
    vestry: Vestry, conn: psycopg.Connection[Any], cloud: FaultServer
) -> None:
    cloud.fault = rate_limited("2")
    job = request(vestry, conn, "Hello?")
    vestry.wait(job, timeout=60)
    cloud.fault = None
    receipt = vestry.receipts(job)[-1]
    assert (receipt.locality, receipt.degraded, receipt.reason) == ("local", True, "rate_limited")
    calls = cloud.calls("/chat/completions")
    again = request(vestry, conn, "Again?")
    vestry.wait(again, timeout=60)
    # On a very busy machine the delay may have passed already.
    later = cloud.calls("/chat/completions")[len(calls) :]
    assert all(call.at - calls[-1].at >= 2 for call in later), "called before its Retry-After"
    if not later:
        assert vestry.receipts(again)[-1].reason == "rate_limited"
