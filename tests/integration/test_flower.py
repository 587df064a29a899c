"""Flower shows the state of every interactive job, and no content."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from typing import Any

import pytest

from tests.flower_client import FlowerClient
from tests.stacks import ECHO_WITH_FLOWER
from tests.waiting import eventually
from vestry import Document, Embedding, Vestry
from vestry.jobs.results import JobRef
from workers.stack.background import BackgroundStack

pytestmark = pytest.mark.stack(ECHO_WITH_FLOWER)

PRIVACIES = ("private", "shareable")
WORD = "quinquereme"
"""In every text of these jobs, and never in Flower."""


@pytest.fixture(params=PRIVACIES)
def privacy(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def flower(up: BackgroundStack, privacy: str) -> FlowerClient:
    return FlowerClient(up.client["flower"][privacy])


def submit(vestry: Vestry, conn: Any, privacy: str, text: str, **options: Any) -> JobRef:
    options = {"latency": "interactive"} | options
    job = Embedding(texts=[f"{WORD} {text}"])
    return vestry.enqueue(conn, job, owner="ann", privacy=privacy, **options)


def shown(flower: FlowerClient, job: JobRef, state: str, within: float = 40.0) -> dict[str, Any]:
    """The job's task in Flower, once it is in a state."""
    until = time.monotonic() + within
    while (task := flower.task(job.id)).get("state") != state:
        assert time.monotonic() < until, f"Flower shows {task.get('state')}, not {state}"
        time.sleep(0.05)
    return task


def is_running(vestry: Vestry, job: JobRef) -> bool:
    return vestry.status(job).state == "running"


def assert_only_id_shown(task: dict[str, Any], job: JobRef) -> None:
    assert task["name"] == "embedding"
    assert task["uuid"] == str(job.id)
    assert [part for part in (task["args"] or "").split("'") if part.strip("()[],")] == [
        str(job.id)
    ]
    assert task["kwargs"] == "{}"
    assert task["result"] in {None, "", "None"}
    assert WORD not in str(task)


@pytest.mark.parametrize("path", ["/", "/tasks", "/workers", "/broker", "/api/tasks",
                                  "/api/workers", "/api/task/types"])  # fmt: skip
def test_flower_requires_its_password(flower: FlowerClient, path: str) -> None:
    assert flower.get(path, user=None)[0] == 401
    assert flower.get(path, user="vestry", password="wrong")[0] == 401
    assert flower.get(path)[0] == 200


def test_password_of_one_flower_opens_no_other(up: BackgroundStack) -> None:
    private, shareable = (FlowerClient(up.client["flower"][name]) for name in PRIVACIES)
    assert private.password != shareable.password
    assert shareable.get("/api/tasks", password=private.password)[0] == 401


def test_succeeded_job_is_a_success(
    flower: FlowerClient, vestry: Vestry, conn: Any, privacy: str
) -> None:
    job = submit(vestry, conn, privacy, "to Ophir")
    vestry.wait(job, timeout=60)
    task = shown(flower, job, "SUCCESS")
    assert_only_id_shown(task, job)
    assert task["routing_key"] == f"{privacy}.interactive.gpu"
    assert task["worker"].startswith(f"{privacy}-interactive-gpu@")


def test_running_job_is_started(
    flower: FlowerClient, vestry: Vestry, conn: Any, privacy: str
) -> None:
    job = submit(vestry, conn, privacy, "echo!sleep=15")
    eventually(partial(is_running, vestry, job))
    assert_only_id_shown(shown(flower, job, "STARTED", within=14), job)
    vestry.wait(job, timeout=60)
    shown(flower, job, "SUCCESS")


def test_dead_job_is_a_failure_with_its_code_alone(
    flower: FlowerClient, vestry: Vestry, conn: Any, privacy: str
) -> None:
    immediate = submit(vestry, conn, privacy, "echo!bad-request")
    retried = submit(vestry, conn, privacy, "echo!unavailable", max_attempts=3)
    for job, code in ((immediate, "bad_request"), (retried, "backend_unavailable")):
        task = shown(flower, job, "FAILURE")
        assert vestry.status(job).state == "dead"
        assert code in task["exception"]
        assert_only_id_shown(task, job)


def test_job_that_waits_for_its_next_attempt_is_a_retry(
    flower: FlowerClient, vestry: Vestry, conn: Any, privacy: str
) -> None:
    job = submit(vestry, conn, privacy, "echo!rate-limited=60")
    task = shown(flower, job, "RETRY")
    assert vestry.status(job).state == "queued"
    assert "rate_limited" in task["exception"]
    assert_only_id_shown(task, job)
    vestry.cancel(job)


def test_cancelled_job_is_revoked(
    flower: FlowerClient, vestry: Vestry, conn: Any, privacy: str
) -> None:
    job = submit(vestry, conn, privacy, "echo!sleep=5")
    eventually(partial(is_running, vestry, job))
    vestry.cancel(job)
    assert_only_id_shown(shown(flower, job, "REVOKED"), job)


def test_jobs_added_to_a_hinted_batch_are_shown(
    flower: FlowerClient, vestry: Vestry, conn: Any, privacy: str
) -> None:
    lane = f"{privacy}.interactive.gpu"
    vestry.pause_lane(lane)
    good = [submit(vestry, conn, privacy, f"nr {n}") for n in range(11)]
    good.insert(5, bad := submit(vestry, conn, privacy, "echo!bad-request"))
    good.remove(bad)
    vestry.resume_lane(lane)
    for job in good:
        vestry.wait(job, timeout=60)
        assert_only_id_shown(shown(flower, job, "SUCCESS"), job)
    assert_only_id_shown(shown(flower, bad, "FAILURE"), bad)


def test_jobs_fetched_without_a_hint_are_shown(
    up: BackgroundStack, flower: FlowerClient, vestry: Vestry, conn: Any, privacy: str
) -> None:
    dispatcher = up.pid("dispatcher")
    assert dispatcher is not None
    os.kill(dispatcher, signal.SIGSTOP)
    try:
        # One after the other: a retry delay of the backend applies to the whole batch.
        for text, state in (
            ("echo!sleep=0.2", "SUCCESS"), ("echo!bad-request", "FAILURE"),
            ("echo!rate-limited=60", "RETRY"), ("echo!sleep=5", "REVOKED"),
        ):  # fmt: skip
            job = submit(vestry, conn, privacy, text)
            if state == "REVOKED":
                eventually(partial(is_running, vestry, job))
                vestry.cancel(job)
            task = shown(flower, job, state)
            assert_only_id_shown(task, job)
            assert task["sent"] is None, "the job had a hint"
            if state == "SUCCESS":
                assert 0.2 <= task["runtime"] < 15
            vestry.cancel(job)
    finally:
        os.kill(dispatcher, signal.SIGCONT)


def test_worker_pages_show_the_lanes(flower: FlowerClient, privacy: str) -> None:
    names = {f"{privacy}-{latency}-gpu": f"{privacy}.{latency}.gpu"
             for latency in ("interactive", "bulk")}  # fmt: skip

    def complete() -> dict[str, dict[str, Any]]:
        # Flower inspects the properties one by one: a busy worker may have answered some of them.
        nodes = flower.workers().items()
        return {node: info for node, info in nodes if {"stats", "active_queues"} <= info.keys()}

    until = time.monotonic() + 60
    while len(workers := complete()) < len(names):
        assert time.monotonic() < until, f"Flower shows {list(workers)}"
    lanes = {
        node.partition("@")[0]: [queue["name"] for queue in worker["active_queues"]]
        for node, worker in workers.items()
    }
    assert lanes == {name: [lane] for name, lane in names.items()}
    for node in workers:
        status, page = flower.worker_page(node)
        assert status == 200
        assert names[node.partition("@")[0]] in page
    status, listed = flower.get("/workers?json=1")
    assert status == 200
    assert all(node in listed for node in workers)


def test_killed_flower_is_restarted_alone_and_lists_the_workers_again(
    up: BackgroundStack, flower: FlowerClient, privacy: str
) -> None:
    def pids() -> dict[str, int | None]:
        return {process["name"]: process["pid"] for process in up.state()["processes"]}

    def ready() -> bool:
        return all(process["state"] == "ready" for process in up.state()["processes"])

    eventually(ready)
    before, name = pids(), f"flower-{privacy}"
    killed = before[name]
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: pids()[name] not in {None, killed} and ready())
    assert {other for other, pid in pids().items() if pid != before[other]} == {name}
    eventually(lambda: bool(flower.workers()))


def test_no_content_of_a_document_is_shown(
    flower: FlowerClient, vestry: Vestry, conn: Any, privacy: str
) -> None:
    document = Document(f"{WORD} of Nineveh", id=WORD, date=WORD, metadata={WORD: WORD})
    job = vestry.enqueue(
        conn, Embedding(documents=[document], source="cargoes"), owner="ann", privacy=privacy
    )
    vestry.wait(job, timeout=60)
    vestry.search(f"{WORD} with apes", owner="ann", privacy=privacy)
    assert_only_id_shown(shown(flower, job, "SUCCESS"), job)
    pages = ["/api/tasks", "/tasks", "/api/workers", "/workers", "/", f"/task/{job.id}"]
    assert not [path for path in pages if WORD in flower.get(path)[1]]
    assert {task["name"] for task in flower.tasks().values()} <= {"embedding", "generation"}


def test_jobs_of_one_class_are_not_shown_in_the_other(
    up: BackgroundStack, vestry: Vestry, conn: Any
) -> None:
    flowers = {name: FlowerClient(up.client["flower"][name]) for name in PRIVACIES}
    for own, other in (PRIVACIES, PRIVACIES[::-1]):
        job = submit(vestry, conn, own, "seen by one")
        shown(flowers[own], job, "SUCCESS")
        assert flowers[other].task(job.id) == {}
