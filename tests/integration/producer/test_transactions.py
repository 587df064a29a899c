"""A job exists if and only if the caller's transaction commits."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from tests.producer_helpers import HELLO, count
from vestry import (
    InvalidInput,
    UnknownJob,
    Vestry,
)
from workers.stack.dev_stack import DevStack


@pytest.mark.parametrize("privacy", ["private", "shareable"])
def test_job_exists_if_and_only_if_the_transaction_commits(
    vestry: Vestry,
    conn: psycopg.Connection[Any],
    root: psycopg.Connection[Any],
    privacy: str,
) -> None:
    # Given a transaction with a job in it, when it rolls back
    lost = vestry.enqueue(conn, HELLO, owner="alice", privacy=privacy, idempotency_key="k")
    assert count(root, "jobs") == 0
    conn.rollback()
    # Then no table has a row
    for table in ("jobs", f"{privacy}_payloads", "owner_keys", "owners", "idempotency_keys"):
        assert count(root, table) == 0
    with pytest.raises(UnknownJob):
        vestry.status(lost)
    # And when another commits, there is one job
    kept = vestry.enqueue(conn, HELLO, owner="alice", privacy=privacy, idempotency_key="k")
    conn.commit()
    assert count(root, "jobs") == count(root, f"{privacy}_payloads") == 1
    status = vestry.status(kept)
    assert (status.state, status.lane, status.owner) == (
        "queued",
        f"{privacy}.bulk.gpu",
        "alice",
    )


def test_job_is_enqueued_by_a_sqlalchemy_session_and_connection(
    vestry: Vestry, clean: DevStack, root: psycopg.Connection[Any]
) -> None:
    url = clean.database_url("vestry_producer").replace("postgresql:", "postgresql+psycopg:", 1)
    engine = sa.create_engine(url)
    with Session(engine) as session:
        vestry.enqueue(session, HELLO, owner="alice", privacy="private")
        session.rollback()
        assert count(root, "jobs") == 0
        vestry.enqueue(session, HELLO, owner="alice", privacy="private")
        session.commit()
        assert count(root, "jobs") == 1
    with engine.connect() as connection:
        vestry.enqueue(connection, HELLO, owner="alice", privacy="private")
        connection.rollback()
        vestry.enqueue_many(connection, [HELLO] * 3, owner="alice", privacy="private")
        connection.commit()
    engine.dispose()
    assert count(root, "jobs") == 4


def test_callers_cursor_and_row_factories_have_no_effect(vestry: Vestry, clean: DevStack) -> None:
    with psycopg.connect(
        clean.database_url("vestry_producer"),
        row_factory=psycopg.rows.dict_row,
        cursor_factory=psycopg.ClientCursor,
        prepare_threshold=None,
        autocommit=True,
    ) as configured:
        job = vestry.enqueue(configured, HELLO, owner="alice", privacy="private")
        many = vestry.enqueue_many(configured, [HELLO], owner="alice", privacy="private")
    assert [one.state for one in vestry.statuses([job, *many])] == ["queued", "queued"]


def test_object_that_is_no_connection_is_refused(vestry: Vestry) -> None:
    for wrong in (None, object(), "postgresql://"):
        with pytest.raises(InvalidInput) as caught:
            vestry.enqueue(wrong, HELLO, owner="alice", privacy="private")
        assert caught.value.field == "conn"


def test_privacy_and_owner_have_no_default(vestry: Vestry, conn: psycopg.Connection[Any]) -> None:
    with pytest.raises(TypeError, match="privacy"):
        vestry.enqueue(conn, HELLO, owner="alice")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="owner"):
        vestry.enqueue(conn, HELLO, privacy="private")  # type: ignore[call-arg]
    for wrong in ("", "PRIVATE", "public", None, True):
        with pytest.raises(InvalidInput) as caught:
            vestry.enqueue(conn, HELLO, owner="alice", privacy=wrong)  # type: ignore[arg-type]
        assert caught.value.field == "privacy"
