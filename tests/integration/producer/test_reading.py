"""Waiting, results, cancelling, lanes, and an unreachable database."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from tests.producer_helpers import HELLO, count, end, succeed
from vestry import (
    Document,
    Embedding,
    EmbeddingResult,
    InvalidInput,
    JobCancelled,
    JobFailed,
    KeyRing,
    NotFinished,
    ResultGone,
    SettingsError,
    Unavailable,
    UnknownJob,
    UnknownLane,
    Vestry,
    WaitTimeout,
)
from workers.stack.dev_stack import DevStack


@pytest.mark.parametrize("privacy", ["private", "shareable"])
def test_wait_returns_the_result_on_notification(
    vestry: Vestry,
    conn: psycopg.Connection[Any],
    root: psycopg.Connection[Any],
    clean: DevStack,
    privacy: str,
) -> None:
    job = vestry.enqueue(conn, HELLO, owner="al'i,ce}", privacy=privacy, latency="interactive")
    conn.commit()
    with pytest.raises(NotFinished):
        vestry.result(job)
    keyring, finished_at = KeyRing.load(clean.keyring), [0.0]

    def work() -> None:
        time.sleep(1.0)  # by now the waiting call has read the state and does not poll again
        finished_at[0] = time.monotonic()
        succeed(root, keyring, job.id, {"vectors": [[1, 2]], "space": "s"})

    worker = threading.Thread(target=work)
    worker.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vestry.client.POLL_S", 30.0)
        result = vestry.wait(job, timeout=20)
    delay_s = time.monotonic() - finished_at[0]
    worker.join()
    assert result == EmbeddingResult(((1.0, 2.0),), "s")
    assert vestry.result_json(str(job.id)) == {"vectors": [[1, 2]], "space": "s"}
    assert delay_s < 8
    root.execute(f"DELETE FROM vestry.{privacy}_results")
    with pytest.raises(ResultGone):
        vestry.result(job)


def test_wait_times_out_and_raises_by_final_state(
    vestry: Vestry, conn: psycopg.Connection[Any], root: psycopg.Connection[Any]
) -> None:
    job, other = vestry.enqueue_many(conn, [HELLO] * 2, owner="alice", privacy="private")
    conn.commit()
    began = time.monotonic()
    with pytest.raises(WaitTimeout):
        vestry.wait(job, timeout=0.3)
    assert time.monotonic() - began < 10
    assert vestry.cancel([job]) == {job.id: "cancelled"}
    assert vestry.cancel(job) == {job.id: "cancelled"}
    with pytest.raises(JobCancelled):
        vestry.wait(job, timeout=5)
    assert count(root, "private_payloads") == 1
    root.execute(
        "UPDATE vestry.jobs SET error_code = 'backend', error_message = 'it broke' WHERE id = %s",
        [other.id],
    )
    end(root, other.id, "dead")
    with pytest.raises(JobFailed) as caught:
        vestry.wait(other, timeout=5)
    assert (caught.value.code, caught.value.state) == ("backend", "dead")
    assert vestry.status(other).error == ("backend", "it broke")


def test_unknown_jobs_and_lanes_raise(vestry: Vestry, conn: psycopg.Connection[Any]) -> None:
    for method in (vestry.status, vestry.result, vestry.wait, vestry.cancel):
        with pytest.raises(UnknownJob):
            method(uuid4())
        with pytest.raises(InvalidInput):
            method("not-an-id")
    with pytest.raises(UnknownLane):
        vestry.pause_lane("private.bulk.cloud")
    removed = vestry.delete_documents(
        conn, owner="stranger", privacy="private", source="diary", ids=["x"]
    )
    assert removed == 0


def test_lanes_are_counted_paused_and_resumed(
    vestry: Vestry, conn: psycopg.Connection[Any]
) -> None:
    vestry.enqueue_many(conn, [HELLO] * 7, owner="alice", privacy="private")
    conn.commit()
    time.sleep(0.1)
    vestry.pause_lane("private.bulk.gpu")
    lanes = {lane.lane: lane for lane in vestry.lanes()}
    assert len(lanes) == 10
    busy, idle = lanes["private.bulk.gpu"], lanes["shareable.bulk.gpu"]
    assert (busy.queued, busy.running, busy.paused) == (7, 0, True)
    assert busy.oldest_age_s is not None
    assert 0.1 <= busy.oldest_age_s < 60
    assert (idle.queued, idle.oldest_age_s, idle.paused) == (0, None, False)
    vestry.resume_lane("private.bulk.gpu")
    assert not any(lane.paused for lane in vestry.lanes())


@pytest.mark.parametrize("privacy", ["private", "shareable"])
def test_documents_are_deleted_by_id_and_by_content(
    vestry: Vestry,
    conn: psycopg.Connection[Any],
    root: psycopg.Connection[Any],
    privacy: str,
) -> None:
    entry = Document("Up early", date="1660-01-01")
    job = Embedding(documents=[Document("a", "x"), Document("b", "y"), entry], source="diary")
    vestry.enqueue(conn, job, owner="alice", privacy=privacy)
    conn.commit()

    def delete(owner: str, source: str, *ids: str | Document) -> int:
        return vestry.delete_documents(
            conn, owner=owner, privacy=privacy, source=source, ids=list(ids)
        )

    assert delete("alice", "other", "x") == 0
    assert delete("bob", "diary", "x") == 0
    assert delete("alice", "diary", "x", "x", entry, "unknown") == 2
    assert delete("alice", "diary", "x") == 0
    conn.commit()
    rows = root.execute(
        f"SELECT generation, deleted FROM vestry.{privacy}_documents ORDER BY 1"
    ).fetchall()
    assert rows == [(1, False), (2, True), (2, True)]


def test_unreachable_database_raises_unavailable() -> None:
    with Vestry("postgresql://stranger:hunter2@127.0.0.1:1/none?connect_timeout=1") as client:
        client._pool.timeout = 1.0
        with pytest.raises(Unavailable) as caught:
            client.lanes()
    assert "hunter2" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_reads_survive_lost_connections(
    vestry: Vestry, conn: psycopg.Connection[Any], root: psycopg.Connection[Any]
) -> None:
    job = vestry.enqueue(conn, HELLO, owner="alice", privacy="private")
    conn.commit()
    vestry.status(job)
    with pytest.raises(WaitTimeout):
        vestry.wait(job, timeout=0.1)
    root.execute(
        """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
           WHERE application_name = 'vestry'"""
    )
    assert vestry.status(job).state == "queued"
    with pytest.raises(WaitTimeout):
        vestry.wait(job, timeout=0.1)


def test_settings_come_from_the_environment_or_the_embedded_stack(
    clean: DevStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("URL", "PASSWORD_FILE"):
        monkeypatch.delenv(f"VESTRY_DATABASE_{name}", raising=False)
    monkeypatch.delenv("VESTRY_KEYRING_FILE", raising=False)
    monkeypatch.setenv("VESTRY_HOME", str(tmp_path))
    with pytest.raises(SettingsError, match="vestry up"):
        Vestry()
    (tmp_path / "client.json").write_text("{SECRET")
    with pytest.raises(SettingsError) as caught:
        Vestry()
    assert "SECRET" not in str(caught.value)
    url = clean.database_url("vestry_producer")
    (tmp_path / "client.json").write_text(
        json.dumps({"database_url": url, "keyring": str(clean.keyring)})
    )
    with Vestry() as client, psycopg.connect(url) as conn:
        client.enqueue(conn, HELLO, owner="alice", privacy="private")
        assert len(client.lanes()) == 10
    # The environment takes precedence, and a password may be in a separate file.
    parts = psycopg.conninfo.conninfo_to_dict(url)
    (tmp_path / "password").write_text(f"{parts['password']}\n")
    bare = f"postgresql://{parts['user']}@{parts['host']}:{parts['port']}/{parts['dbname']}"
    monkeypatch.setenv("VESTRY_DATABASE_URL", bare)
    monkeypatch.setenv("VESTRY_DATABASE_PASSWORD_FILE", str(tmp_path / "password"))
    with Vestry() as client:
        assert len(client.lanes()) == 10
