"""Flows through real workers on the echo backend: upstream texts, and ends of followers."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from tests.stacks import ECHO
from tests.waiting import eventually
from vestry import (
    UPSTREAM,
    Document,
    Embedding,
    Flow,
    Generation,
    InvalidInput,
    JobFailed,
    JobRef,
    Vestry,
)
from vestry.errors import JobCancelled

pytestmark = pytest.mark.stack(ECHO)

TEXT = "the tide went out before dawn"


def indexing(name: str) -> Embedding:
    return Embedding(documents=[Document(UPSTREAM, id=name, date="1660-01-01")], source="flows")


def enqueue(
    vestry: Vestry, conn: psycopg.Connection[Any], job: Any, privacy: str = "private", **more: Any
) -> JobRef:
    options = {"owner": "flora", "privacy": privacy, "latency": "interactive"} | more
    return vestry.enqueue(conn, job, **options)


@pytest.mark.parametrize("privacy", ["private", "shareable"])
def test_upstream_is_the_text_of_the_nearest_ancestor_with_text(
    vestry: Vestry, conn: psycopg.Connection[Any], privacy: str
) -> None:
    owner = f"nearest-{privacy}"
    second = Flow(indexing(f"scan-{privacy}"), [Generation(UPSTREAM)])
    first = enqueue(vestry, conn, Generation(TEXT), privacy, then=[second], owner=owner)
    (index,) = first.then
    (answer,) = index.then
    result = vestry.wait(answer, timeout=60)
    assert result.text == TEXT
    assert vestry.wait(index, timeout=60).embedded == 1
    hits = vestry.search("before dawn", owner=owner, privacy=privacy, own_sources=["flows"])
    assert (hits[0].document, hits[0].text) == (f"scan-{privacy}", TEXT)
    for job in (first, index, answer):
        status = vestry.status(job)
        assert (status.privacy, status.owner, status.latency) == (privacy, owner, "interactive")
        assert status.root == first.id
    assert [status.job for status in vestry.flow(answer)] == [first.id, index.id, answer.id]


def test_followers_wait_and_exist_only_if_the_transaction_commits(
    vestry: Vestry, conn: psycopg.Connection[Any]
) -> None:
    with conn.transaction(force_rollback=True):
        job = enqueue(vestry, conn, Generation("echo!sleep=1"), then=[indexing("rolled-back")])
    assert vestry.statuses([job, *job.then]) == []
    job = enqueue(vestry, conn, Generation("echo!sleep=5 slow"), then=[indexing("slow")])
    assert vestry.status(job.then[0]).state == "waiting"
    vestry.wait(job.then[0], timeout=60)


@pytest.mark.parametrize("state", ["dead", "cancelled"])
def test_failed_job_ends_its_followers(
    vestry: Vestry, conn: psycopg.Connection[Any], state: str
) -> None:
    fault = "echo!bad-request" if state == "dead" else "echo!sleep=30"
    chain = Flow(indexing(f"never-{state}"), [Generation(UPSTREAM), Generation(UPSTREAM)])
    job = enqueue(vestry, conn, Generation(fault), then=[chain])
    if state == "cancelled":
        eventually(lambda: vestry.status(job).state == "running")
        assert vestry.cancel(job) == {job.id: "cancelled"}
    with pytest.raises(JobFailed):
        vestry.wait(job, timeout=60)
    followers = [job.then[0], *job.then[0].then]
    assert {status.state for status in vestry.statuses(followers)} == {state}
    with pytest.raises(JobCancelled if state == "cancelled" else JobFailed) as failed:
        vestry.wait(followers[-1], timeout=60)
    assert failed.value.code == ("cancelled" if state == "cancelled" else "parent_failed")


def test_cancelling_a_finished_first_job_cancels_its_unfinished_followers(
    vestry: Vestry, conn: psycopg.Connection[Any]
) -> None:
    job = enqueue(vestry, conn, Generation(TEXT), then=[Generation("echo!sleep=30")])
    vestry.wait(job, timeout=60)
    assert vestry.cancel(job) == {job.id: "succeeded"}
    assert vestry.status(job.then[0]).state == "cancelled"


def test_repeated_key_returns_the_same_flow(vestry: Vestry, conn: psycopg.Connection[Any]) -> None:
    flow = Flow(
        Generation(TEXT), [indexing("keyed"), Flow(Generation(UPSTREAM), [Generation(UPSTREAM)])]
    )
    first = enqueue(vestry, conn, flow, idempotency_key="flow-1")
    again = enqueue(vestry, conn, flow, idempotency_key="flow-1")

    def ids(job: JobRef) -> list[Any]:
        return [job.id, *map(ids, job.then)]

    assert ids(again) == ids(first)
    assert not again.created
    vestry.wait(first.then[1].then[0], timeout=60)
    assert vestry.wait(first.then[0], timeout=60).embedded == 1


def test_result_without_text_fails_its_follower(
    vestry: Vestry, conn: psycopg.Connection[Any]
) -> None:
    job = enqueue(vestry, conn, Embedding(texts=["only a vector"]), then=[Generation(UPSTREAM)])
    with pytest.raises(JobFailed) as failed:
        vestry.wait(job.then[0], timeout=60)
    assert failed.value.code == "no_upstream_text"


def test_follower_without_upstream_needs_no_text(
    vestry: Vestry, conn: psycopg.Connection[Any]
) -> None:
    job = enqueue(vestry, conn, Embedding(texts=["only a vector"]), then=[Generation("own prompt")])
    assert "own prompt" in vestry.wait(job.then[0], timeout=60).text


@pytest.mark.parametrize(
    ("job", "field"),
    [
        (Generation(UPSTREAM), "job"),
        (
            Flow(Generation(TEXT), [Flow(Generation(UPSTREAM), ["no job"])]),
            "then\\[0\\].then\\[0\\]",
        ),
        (Flow(Generation(TEXT), [indexing("x"), indexing("x")]), "then"),
        (Flow(Generation(TEXT), [Generation(UPSTREAM)] * 100), "then"),
    ],
)
def test_invalid_flows_are_refused_at_enqueue(
    vestry: Vestry, conn: psycopg.Connection[Any], job: Any, field: str
) -> None:
    with pytest.raises(InvalidInput, match=f"^{field}: "):
        enqueue(vestry, conn, job)


def test_upstream_document_requires_an_id() -> None:
    with pytest.raises(InvalidInput, match="UPSTREAM"):
        Embedding(documents=[Document(UPSTREAM)], source="flows")
