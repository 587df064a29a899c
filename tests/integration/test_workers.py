"""Jobs on a stack with real worker processes: success, failure, crash, drain, cancellation, schedules.

The `echo` backend replaces a model: only a fake crashes, hangs or refuses on request.
"""

from __future__ import annotations

import datetime as dt
import os
import signal
import time
from typing import Any

import pytest

from tests.stacks import ECHO
from tests.waiting import BULK_S, eventually
from vestry import Document, Embedding, EmbeddingResult, Generation, IndexResult, JobFailed, Vestry
from vestry.jobs.results import JobRef
from workers.settings import Settings
from workers.stack.background import BackgroundStack

pytestmark = pytest.mark.stack(ECHO)

SLOTS = Settings().slots


def submit(vestry: Vestry, conn: Any, *texts: str, **options: Any) -> JobRef:
    options = {"owner": "walter", "privacy": "private", "latency": "interactive"} | options
    return vestry.enqueue(conn, Embedding(texts=list(texts)), **options)


def state(vestry: Vestry, job: JobRef) -> str:
    return vestry.status(job).state


@pytest.mark.parametrize("privacy", ["private", "shareable"])
@pytest.mark.parametrize("latency", ["interactive", "bulk"])
def test_job_of_each_lane_succeeds(vestry: Vestry, conn: Any, privacy: str, latency: str) -> None:
    job = submit(vestry, conn, "one text", "another", privacy=privacy, latency=latency)
    result = vestry.wait(job, timeout=BULK_S)
    assert isinstance(result, EmbeddingResult)
    assert len(result.vectors) == 2
    assert len(result.vectors[0]) == 384
    status = vestry.status(job)
    assert (status.state, status.attempt) == ("succeeded", 1)


def test_documents_are_found_by_their_owner_only_until_deleted(vestry: Vestry, conn: Any) -> None:
    entry = Document("We walked along the river to the fair.", id="a1", date="1660-05-01")
    job = vestry.enqueue(
        conn, Embedding(documents=[entry], source="diary"), owner="walter", privacy="private"
    )
    result = vestry.wait(job, timeout=BULK_S)
    assert isinstance(result, IndexResult)
    assert (result.documents, result.embedded, result.unchanged) == (1, 1, 0)

    hits = vestry.search("river fair", owner="walter", privacy="private")
    assert [(h.document, h.date, h.text) for h in hits] == [("a1", "1660-05-01", entry.text)]
    assert not list(vestry.search("river fair", owner="bob", privacy="private"))

    again = vestry.enqueue(
        conn, Embedding(documents=[entry], source="diary"), owner="walter", privacy="private"
    )
    result = vestry.wait(again, timeout=BULK_S)
    assert isinstance(result, IndexResult)
    assert (result.embedded, result.unchanged) == (0, 1)

    vestry.delete_documents(conn, owner="walter", privacy="private", source="diary", ids=["a1"])
    assert not list(vestry.search("river fair", owner="walter", privacy="private"))


def test_failing_job_is_retried_and_then_dead(vestry: Vestry, conn: Any) -> None:
    job = submit(vestry, conn, "echo!unavailable", max_attempts=3)
    with pytest.raises(JobFailed) as failed:
        vestry.wait(job, timeout=BULK_S)
    assert failed.value.code == "backend_unavailable"
    assert vestry.status(job).attempt == 3
    outcomes = conn.execute(
        "SELECT outcome FROM vestry.receipts WHERE job_id = %s ORDER BY attempt", [job.id]
    ).fetchall()
    assert [o[0] for o in outcomes] == ["retry", "retry", "dead"]


def test_job_that_crashes_its_process_is_dead_and_no_other_is(vestry: Vestry, conn: Any) -> None:
    vestry.pause_lane("private.bulk.gpu")
    others = [submit(vestry, conn, f"text {n}", latency="bulk") for n in range(5)]
    poison = submit(vestry, conn, "echo!exit", latency="bulk")
    others += [submit(vestry, conn, f"more {n}", latency="bulk") for n in range(5)]
    vestry.resume_lane("private.bulk.gpu")
    with pytest.raises(JobFailed) as failed:
        vestry.wait(poison, timeout=BULK_S)
    assert failed.value.code == "crashed"
    for job in others:
        vestry.wait(job, timeout=BULK_S)


def test_queued_and_running_jobs_are_cancelled(vestry: Vestry, conn: Any) -> None:
    running = submit(vestry, conn, "echo!sleep=4")
    eventually(lambda: state(vestry, running) == "running")
    later = submit(vestry, conn, "x", run_at=from_now(60))
    assert set(vestry.cancel([running, later]).values()) == {"cancelled"}
    assert state(vestry, running) == state(vestry, later) == "cancelled"

    def receipt() -> list[Any]:
        rows: list[Any] = conn.execute(
            "SELECT outcome FROM vestry.receipts WHERE job_id = %s", [running.id]
        ).fetchall()
        return rows

    eventually(lambda: receipt() == [("refused",)])
    assert state(vestry, running) == "cancelled"


def test_queued_job_past_its_deadline_expires(vestry: Vestry, conn: Any) -> None:
    job = submit(vestry, conn, "x", run_at=from_now(60), deadline=from_now(0.5))
    eventually(lambda: state(vestry, job) == "expired")


def test_scheduled_job_runs_at_its_time(vestry: Vestry, conn: Any) -> None:
    job = submit(vestry, conn, "x", run_at=from_now(1.0))
    vestry.wait(job, timeout=BULK_S)
    early = "SELECT started_at < run_at FROM vestry.jobs WHERE id = %s"
    assert conn.execute(early, [job.id]).fetchone() == (False,)


def test_document_deleted_while_it_is_embedded_stays_deleted(vestry: Vestry, conn: Any) -> None:
    job = vestry.enqueue(
        conn,
        Embedding(documents=[Document("echo!sleep=5 meadow", id="gone")], source="diary"),
        owner="dan",
        privacy="private",
    )
    eventually(lambda: state(vestry, job) == "running")
    vestry.delete_documents(conn, owner="dan", privacy="private", source="diary", ids=["gone"])
    eventually(lambda: state(vestry, job) == "superseded")
    assert not list(vestry.search("meadow", owner="dan", privacy="private"))


def test_newer_version_wins_over_one_being_embedded(vestry: Vestry, conn: Any) -> None:
    def enqueue(text: str) -> JobRef:
        return vestry.enqueue(
            conn,
            Embedding(documents=[Document(text, id="d")], source="diary"),
            owner="eve",
            privacy="private",
        )

    old = enqueue("echo!sleep=5 the old version")
    eventually(lambda: state(vestry, old) == "running")
    new = enqueue("the new version")
    vestry.wait(new, timeout=BULK_S)
    eventually(lambda: state(vestry, old) == "superseded")
    hits = list(vestry.search("version", owner="eve", privacy="private"))
    assert [h.text for h in hits] == ["the new version"]


def test_drain_releases_jobs_without_costing_an_attempt(
    up: BackgroundStack, vestry: Vestry, conn: Any
) -> None:
    job = submit(vestry, conn, "echo!sleep=8")
    eventually(lambda: state(vestry, job) == "running")
    pid = up.pid("private-interactive-gpu")
    assert pid is not None
    os.kill(pid, signal.SIGTERM)
    eventually(lambda: state(vestry, job) == "queued")
    crashes = "SELECT crashes, quarantined FROM vestry.jobs WHERE id = %s"
    assert conn.execute(crashes, [job.id]).fetchone() == (0, False), "the lease expired"
    vestry.wait(job, timeout=BULK_S)
    assert vestry.status(job).attempt == 1


def from_now(seconds: float) -> dt.datetime:
    return dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds)


def test_query_is_embedded_while_all_generation_slots_are_busy(vestry: Vestry, conn: Any) -> None:
    common = {"owner": "busy", "privacy": "private", "latency": "interactive"}
    slow = [vestry.enqueue(conn, Generation("echo!sleep=20 on"), **common) for _ in range(6)]
    eventually(lambda: [state(vestry, job) for job in slow].count("running") == SLOTS)
    begun = time.monotonic()
    vestry.wait(vestry.enqueue(conn, Embedding(texts=["a query"], input="query"), **common), 15)
    took_s = time.monotonic() - begun
    assert [state(vestry, job) for job in slow].count("running") == SLOTS
    vestry.cancel(slow)
    assert took_s < 10.0, "the query waited for a slot that generation holds"
