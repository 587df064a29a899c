"""Thousands of jobs in one call."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import psycopg
import pytest

from tests.producer_helpers import CHECKOUT, HELLO, count
from vestry import (
    Document,
    Embedding,
    InvalidInput,
    Vestry,
)
from workers.stack.dev_stack import DevStack


def test_one_invalid_job_of_many_enqueues_none(
    vestry: Vestry, conn: psycopg.Connection[Any], root: psycopg.Connection[Any]
) -> None:
    jobs = [HELLO] * 1500 + [Embedding(texts=["x" * 1_048_570])]
    with pytest.raises(InvalidInput) as caught:
        vestry.enqueue_many(conn, jobs, owner="alice", privacy="private")
    assert caught.value.field == "jobs[1500].texts"
    with pytest.raises(InvalidInput):
        vestry.enqueue_many(conn, [HELLO, "not a job"], owner="alice", privacy="private")  # type: ignore[list-item]
    conn.commit()
    assert count(root, "jobs") == 0


def test_repeated_document_in_a_call_goes_into_separate_batches(
    vestry: Vestry, conn: psycopg.Connection[Any], root: psycopg.Connection[Any]
) -> None:
    jobs = [
        Embedding(documents=[Document(text, "x")], source="diary") for text in ("old", "new", "new")
    ]
    references = vestry.enqueue_many(conn, jobs, owner="alice", privacy="private")
    conn.commit()
    rows = root.execute(
        "SELECT job_id, generation FROM vestry.job_documents ORDER BY generation"
    ).fetchall()
    assert rows == [(job.id, generation) for generation, job in enumerate(references, 1)]


MANY = """
import os, pathlib, re, resource, psycopg
from vestry import Embedding, Vestry
with Vestry() as vestry, psycopg.connect(os.environ["VESTRY_DATABASE_URL"]) as conn:
    jobs = (Embedding(texts=[f"line {n} " + "words " * 40]) for n in range(100_000))
    refs = vestry.enqueue_many(conn, jobs, owner="alice", privacy="private")
    conn.commit()
# Where there is /proc: getrusage also counts what the parent held when it forked this process.
status = pathlib.Path("/proc/self/status")
if status.exists():
    peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", status.read_text())[1]) * 1024
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(len(refs), peak)
"""


@pytest.mark.slow
def test_hundred_thousand_jobs_fit_in_a_small_producer(
    clean: DevStack, root: psycopg.Connection[Any]
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MANY],
        env={
            **os.environ,
            "VESTRY_DATABASE_URL": clean.database_url("vestry_producer"),
            "VESTRY_KEYRING_FILE": str(clean.keyring),
        },
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=True,
        timeout=400,
    )
    enqueued, peak = map(int, done.stdout.split())
    assert enqueued == count(root, "jobs") == 100_000
    assert 20_000_000 < peak < 300_000_000
    start_tags = root.execute(
        "SELECT count(DISTINCT start_tag), min(start_tag), max(start_tag) FROM vestry.jobs"
    ).fetchone()
    assert start_tags == (100_000, 0, 99_999)
