"""Key rotation, and the erasure of an owner, while documents are being indexed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.privacy.conftest import CANARY, Canary
from tests.privacy.scenario import TIMEOUT_S
from tests.waiting import eventually
from vestry import Document, Embedding, OwnerForgotten, UnknownKey, Vestry
from vestry.admin.erasure import forget
from vestry.admin.key_rotation import retire, rotate, statuses
from vestry.crypto.keyring_file import KeyFile
from vestry.jobs.results import JobRef

pytestmark = [pytest.mark.slow, pytest.mark.stack(CANARY)]

SOURCE = "letters"
JOBS = 24
DOCUMENTS = 4
"""Documents of a job; each takes 50 ms."""


@pytest.fixture
def conn(canary: Canary) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(canary.up.client["database_url"], autocommit=True) as conn:
        yield conn


@pytest.fixture
def vestry(canary: Canary) -> Iterator[Vestry]:
    with Vestry(canary.up.client["database_url"], canary.up.client["keyring"]) as vestry:
        yield vestry


@pytest.fixture
def operator(canary: Canary) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(canary.up.client["operator_url"], autocommit=True) as conn:
        yield conn


def index(vestry: Vestry, conn: Any, owner: str) -> list[JobRef]:
    jobs = [
        Embedding(
            documents=[
                Document(f"Letter {n} of {job}, echo!sleep=0.05", id=f"{job}-{n}")
                for n in range(DOCUMENTS)
            ],
            source=SOURCE,
        )
        for job in range(JOBS)
    ]
    return vestry.enqueue_many(conn, jobs, owner=owner, privacy="private")


def states_of(vestry: Vestry, jobs: list[JobRef]) -> list[str]:
    return [status.state for status in vestry.statuses(jobs)]


def wait_for_all(vestry: Vestry, jobs: list[JobRef]) -> list[str]:
    for job in jobs:
        vestry.wait_finished(job, TIMEOUT_S)
    return states_of(vestry, jobs)


def test_index_completes_during_a_key_rotation(
    canary: Canary, vestry: Vestry, conn: Any, operator: Any
) -> None:
    ring = KeyFile(canary.stack.home.keyring)
    jobs = index(vestry, conn, "rotating")
    eventually(lambda: "running" in states_of(vestry, jobs))
    done = rotate(operator, ring)
    assert done.not_rewrapped == 0
    unfinished = {"queued", "running"} & set(states_of(vestry, jobs))
    assert unfinished, "the index ended before the rotation"
    # A new owner during the index, whose data key only the new key wraps.
    new = index(vestry, conn, "after the rotation")
    assert set(wait_for_all(vestry, jobs + new)) == {"succeeded"}
    keys = {status.key: status.wraps for status in statuses(operator, ring)}
    assert {key for key, wraps in keys.items() if wraps} == {done.current}
    assert retire(operator, ring) == [key for key in keys if key != done.current]
    # Content sealed before, during and after the rotation opens with the new ring only.
    for owner in ("rotating", "after the rotation", canary.private.owner):
        hits = vestry.search("a letter", owner=owner, privacy="private", timeout=TIMEOUT_S)
        assert hits
        assert all(hit.text for hit in hits if hit.source == SOURCE)


def rows_of(canary: Canary, owner: str) -> dict[str, int]:
    content = ("payloads", "results", "blobs", "documents", "chunks", "embeddings")
    tables = [f"{privacy}_{name}" for privacy in ("private", "shareable") for name in content]
    with canary.stack.superuser() as root:
        counts = {
            table: root.execute(
                f"SELECT count(*) FROM vestry.{table} WHERE owner = %s", [owner]
            ).fetchone()
            for table in (*tables, "owner_keys", "idempotency_keys")
        }
    return {table: row[0] for table, row in counts.items() if row and row[0]}


def test_owner_is_erased_during_an_index(
    canary: Canary, vestry: Vestry, conn: Any, operator: Any
) -> None:
    jobs = index(vestry, conn, "forgotten")
    interactive = vestry.enqueue(
        conn, Embedding(texts=["echo!sleep=8"]), owner="forgotten", privacy="private",
        latency="interactive",
    )  # fmt: skip
    eventually(
        lambda: (
            "succeeded" in states_of(vestry, jobs)
            and "running" in states_of(vestry, [*jobs, interactive])
        )
    )
    running = [s.job for s in vestry.statuses([*jobs, interactive]) if s.state == "running"]
    assert running
    report = forget(operator, "forgotten")
    assert report.cancelled > 0
    assert report.gone["keys"] == 1
    assert report.gone["vectors"] > 0
    assert rows_of(canary, "forgotten") == {}
    ended = dict(zip([*jobs, interactive], states_of(vestry, [*jobs, interactive]), strict=True))
    assert set(ended.values()) == {"succeeded", "cancelled"}
    # No job that ran when the tombstone was set succeeded after it.
    with canary.stack.superuser() as root:
        late = root.execute(
            """SELECT count(*) FROM vestry.jobs j JOIN vestry.owners o USING (owner)
               WHERE o.owner = 'forgotten' AND j.state = 'succeeded'
                 AND j.finished_at > o.forgotten_at"""
        ).fetchone()
    assert late == (0,)
    # Long enough for running jobs to be refused at their end.
    time.sleep(2.5)
    assert rows_of(canary, "forgotten") == {}
    assert (
        dict(zip([*jobs, interactive], states_of(vestry, [*jobs, interactive]), strict=True))
        == ended
    )
    with pytest.raises((OwnerForgotten, UnknownKey)):
        index(vestry, conn, "forgotten")
    assert rows_of(canary, "forgotten") == {}
