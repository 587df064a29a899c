"""Grounded answers through real workers: which passages they may and may not use.

The echo backend repeats its prompt with the passages, so the result shows the model's input.
"""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from tests.stacks import ECHO
from tests.waiting import BULK_S
from vestry import (
    Document,
    Embedding,
    Generation,
    GenerationResult,
    Grounding,
    InvalidInput,
    JobFailed,
    Vestry,
)
from workers.stack.background import BackgroundStack

pytestmark = pytest.mark.stack(ECHO)

SECRET = "the quarrel by the river"
VERSE = "by the rivers of babylon there we sat down"


@pytest.fixture(scope="module", autouse=True)
def indexed(up: BackgroundStack, vestry: Vestry) -> None:
    def index(text: str, name: str, source: str, owner: str, privacy: str) -> None:
        job = Embedding(documents=[Document(text, id=name, date="1660-01-01")], source=source)
        with psycopg.connect(up.client["database_url"], autocommit=True) as conn:
            vestry.wait(vestry.enqueue(conn, job, owner=owner, privacy=privacy), BULK_S)

    index(SECRET, "d1", "diary", "grace", "private")
    index("the river froze over", "d1", "diary", "boaz", "private")
    index("a letter about the river", "l1", "letters", "grace", "shareable")
    index(VERSE, "Psa137:1", "psalms", "library", "shareable")


def ask(
    vestry: Vestry, conn: Any, owner: str, privacy: str = "private", **grounding: Any
) -> GenerationResult:
    request = Generation("the river?", max_tokens=500, grounding=Grounding(**grounding))
    job = vestry.enqueue(conn, request, owner=owner, privacy=privacy, latency="interactive")
    result = vestry.wait(job, 20)
    assert isinstance(result, GenerationResult)
    return result


def cited(result: GenerationResult) -> set[tuple[str, str, str]]:
    return {(c.owner, c.source, c.document) for c in result.citations}


def test_private_answer_cites_all_sources_of_its_owner_only(
    vestry: Vestry, conn: psycopg.Connection[Any]
) -> None:
    result = ask(vestry, conn, "grace")
    assert cited(result) == {("grace", "diary", "d1"), ("grace", "letters", "l1")}
    assert SECRET in result.text
    assert "froze" not in result.text
    assert cited(ask(vestry, conn, "boaz")) == {("boaz", "diary", "d1")}


def test_shareable_source_is_cited_by_any_owner_that_names_it(
    vestry: Vestry, conn: psycopg.Connection[Any]
) -> None:
    result = ask(vestry, conn, "grace", sources=["psalms"], own_sources=["diary"])
    assert cited(result) == {("grace", "diary", "d1"), ("library", "psalms", "Psa137:1")}
    assert cited(ask(vestry, conn, "zoe", sources=["psalms"])) == {
        ("library", "psalms", "Psa137:1")
    }


def test_shareable_answer_gets_no_private_passage(
    vestry: Vestry, conn: psycopg.Connection[Any]
) -> None:
    result = ask(vestry, conn, "grace", "shareable", sources=["psalms"])
    assert cited(result) == {("grace", "letters", "l1"), ("library", "psalms", "Psa137:1")}
    assert SECRET not in result.text


@pytest.mark.parametrize("named", [{"own_sources": ["diary"]}, {"sources": ["psalms", "diary"]}])
def test_shareable_job_that_names_a_private_source_is_refused_at_enqueue(
    vestry: Vestry, conn: psycopg.Connection[Any], named: dict[str, list[str]]
) -> None:
    request = Generation("the river?", grounding=Grounding(**named))
    with conn.transaction():
        with pytest.raises(InvalidInput, match="source diary is private"):
            vestry.enqueue(conn, request, owner="grace", privacy="shareable")
        row = conn.execute("SELECT 1").fetchone()
        assert row == (1,), "the transaction is usable"
    # Another owner without such a source gets no error, which would reveal it.
    vestry.enqueue(conn, request, owner="zoe", privacy="shareable")


def test_answer_without_passages_fails_with_no_passages(
    vestry: Vestry, conn: psycopg.Connection[Any]
) -> None:
    with pytest.raises(JobFailed) as failed:
        ask(vestry, conn, "unknown")
    assert failed.value.code == "no_passages"
