"""Conditions that must not stop a lane: foreign keys, open transactions, jobs that never end."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.stacks import ECHO, ECHO_SETTINGS, StackSpec
from tests.waiting import eventually
from vestry import Document, Embedding, JobFailed, KeyRing, Vestry
from vestry.jobs.results import JobRef
from workers.stack.background import BackgroundStack

MAX_RUN_S = 4
pytestmark = pytest.mark.stack(
    StackSpec(
        "adversity",
        (*ECHO.settings, ("VESTRY_MAX_RUN_S", str(MAX_RUN_S)), ("VESTRY_BATCH_S", "0.5")),
        ("dispatcher", "reconciler", "private-bulk-gpu"),
    )
)


def submit(vestry: Vestry, conn: Any, text: str, owner: str = "ann") -> JobRef:
    return vestry.enqueue(conn, Embedding(texts=[text]), owner=owner, privacy="private")


def test_job_sealed_with_a_foreign_key_fails_and_no_other_does(
    up: BackgroundStack, vestry: Vestry, conn: Any, tmp_path: Path
) -> None:
    foreign = KeyRing.generate(tmp_path / "foreign.json")
    with Vestry(up.client["database_url"], foreign) as other:
        vestry.pause_lane("private.bulk.gpu")
        bad = other.enqueue(
            conn, Embedding(texts=["x"]), owner="stranger", privacy="private", max_attempts=2
        )
        good = [submit(vestry, conn, f"text {n}", f"owner-{n}") for n in range(5)]
        vestry.resume_lane("private.bulk.gpu")
    for job in good:
        vestry.wait(job, timeout=90)
    eventually(lambda: vestry.status(bad).state == "dead")
    with pytest.raises(JobFailed) as failed:
        vestry.result(bad)
    assert failed.value.code == "unsealable"
    vestry.wait(submit(vestry, conn, "after the failed job"), timeout=90)


def test_open_transaction_on_a_document_delays_its_job_and_no_other(
    up: BackgroundStack, vestry: Vestry, conn: Any
) -> None:
    def index(connection: Any, id_: str, text: str) -> JobRef:
        return vestry.enqueue(
            connection,
            Embedding(documents=[Document(text, id=id_)], source="diary"),
            owner="ann",
            privacy="private",
        )

    vestry.pause_lane("private.bulk.gpu")
    first = index(conn, "held", "the first version")
    neighbours = [index(conn, f"free-{n}", f"text {n}") for n in range(5)]
    with psycopg.connect(up.client["database_url"]) as caller:
        index(caller, "held", "the second version")
        vestry.resume_lane("private.bulk.gpu")
        for job in neighbours:
            vestry.wait(job, timeout=90)
        time.sleep(2 * float(ECHO_SETTINGS["VESTRY_LEASE_S"]))
        status = vestry.status(first)
        assert status.state in {"queued", "running"}
        caller.rollback()
    vestry.wait(first, timeout=90)
    row = conn.execute(
        "SELECT attempt, crashes, quarantined FROM vestry.jobs WHERE id = %s", [first.id]
    ).fetchone()
    assert row == (1, 0, False), "a lock wait costs no attempt and no crash"


def test_hung_job_times_out_and_its_process_is_restarted(
    up: BackgroundStack, vestry: Vestry, conn: Any
) -> None:
    pid = up.pid("private-bulk-gpu")
    hung = submit(vestry, conn, "echo!sleep=600")
    others = [submit(vestry, conn, f"beside {n}") for n in range(3)]
    with pytest.raises(JobFailed) as failed:
        vestry.wait(hung, timeout=120)
    assert failed.value.code == "timed_out"
    assert up.pid("private-bulk-gpu") != pid
    for job in others:
        vestry.wait(job, timeout=90)
