"""A producer against a real Postgres: its transactions, keys, idempotency, waiting."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from vestry import (
    Document,
    Embedding,
    EmbeddingResult,
    IdempotencyConflict,
    InvalidInput,
    JobCancelled,
    JobFailed,
    KeyRing,
    NotFinished,
    OwnerForgotten,
    ResultGone,
    SealBroken,
    SettingsError,
    Unavailable,
    UnknownJob,
    UnknownKey,
    UnknownLane,
    Vestry,
    WaitTimeout,
)
from vestry.sealing import PAYLOAD, RESULT
from workers.devstack import DevStack

CHECKOUT = Path(__file__).resolve().parents[2]
HELLO = Embedding(texts=["hello"])


@pytest.fixture
def vestry(clean: DevStack) -> Iterator[Vestry]:
    with Vestry(clean.database_url("vestry_producer"), clean.keyring) as client:
        yield client


@pytest.fixture
def conn(clean: DevStack) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(clean.database_url("vestry_producer")) as caller:
        yield caller


@pytest.fixture
def root(clean: DevStack) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(clean.superuser_url, autocommit=True) as superuser:
        yield superuser


def count(root: psycopg.Connection[Any], table: str) -> int:
    row = root.execute(f"SELECT count(*) FROM vestry.{table}").fetchone()  # type: ignore[call-overload]
    return int(row[0])


def end(root: psycopg.Connection[Any], job: UUID, state: str) -> None:
    root.execute(
        """UPDATE vestry.jobs SET state = 'running', turn = NULL, lease_id = gen_random_uuid()
           WHERE id = %s""",
        [job],
    )
    root.execute(
        """UPDATE vestry.jobs SET state = %s, lease_id = NULL, finished_at = vestry.clock()
           WHERE id = %s""",
        [state, job],
    )


def succeed(
    root: psycopg.Connection[Any], keyring: KeyRing, job: UUID, result: dict[str, Any]
) -> None:
    """What a worker's finish amounts to."""
    body = json.dumps(result)
    owner, privacy = root.execute(
        "SELECT owner, privacy FROM vestry.jobs WHERE id = %s", [job]
    ).fetchone()  # type: ignore[misc]
    with root.transaction():
        if privacy == "private":
            key = keyring.unwrap(owner, *root.execute(
                "SELECT key_id, wrapped, kek_id FROM vestry.owner_keys WHERE owner = %s", [owner]
            ).fetchone())  # fmt: skip # type: ignore[misc]
            root.execute(
                """INSERT INTO vestry.private_results
                   VALUES (%s, %s, %s, %s, now() + interval '1 hour')""",
                [job, owner, key.key_id, key.seal(RESULT, job, body.encode())],
            )
        else:
            root.execute(
                "INSERT INTO vestry.shareable_results VALUES (%s, %s, %s, now() + interval '1 h')",
                [job, owner, body],
            )
        end(root, job, "succeeded")
        root.execute("SELECT pg_notify('vestry_done', %s)", [str(job)])


# -- the caller's transaction -------------------------------------------------------------------


@pytest.mark.parametrize("privacy", ["private", "shareable"])
def test_a_job_exists_if_and_only_if_the_transaction_commits(
    vestry: Vestry,
    conn: psycopg.Connection[Any],
    root: psycopg.Connection[Any],
    privacy: str,
) -> None:
    # Given a transaction with a job in it, when it rolls back
    lost = vestry.enqueue(conn, HELLO, owner="alice", privacy=privacy, idempotency_key="k")
    assert count(root, "jobs") == 0
    conn.rollback()
    # Then nothing at all is left
    for table in ("jobs", f"{privacy}_payloads", "owner_keys", "owners", "idempotency_keys"):
        assert count(root, table) == 0
    with pytest.raises(UnknownJob):
        vestry.status(lost)
    # And when another commits, one job is there
    kept = vestry.enqueue(conn, HELLO, owner="alice", privacy=privacy, idempotency_key="k")
    conn.commit()
    assert count(root, "jobs") == count(root, f"{privacy}_payloads") == 1
    status = vestry.status(kept)
    assert (status.state, status.lane, status.owner) == (
        "queued",
        f"{privacy}.bulk.gpu",
        "alice",
    )


def test_a_sqlalchemy_session_and_connection_carry_the_job(
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


def test_a_callers_own_cursor_and_row_settings_do_not_matter(
    vestry: Vestry, clean: DevStack
) -> None:
    with psycopg.connect(
        clean.database_url("vestry_producer"),
        row_factory=psycopg.rows.dict_row,
        cursor_factory=psycopg.ClientCursor,
        prepare_threshold=None,
        autocommit=True,
    ) as odd:
        job = vestry.enqueue(odd, HELLO, owner="alice", privacy="private")
        many = vestry.enqueue_many(odd, [HELLO], owner="alice", privacy="private")
    assert [one.state for one in vestry.statuses([job, *many])] == ["queued", "queued"]


def test_what_is_no_connection_is_refused(vestry: Vestry) -> None:
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


# -- keys ----------------------------------------------------------------------------------------


def test_private_content_is_stored_sealed_and_opens_with_the_ring(
    vestry: Vestry,
    conn: psycopg.Connection[Any],
    root: psycopg.Connection[Any],
    clean: DevStack,
) -> None:
    job = vestry.enqueue(conn, Embedding(texts=["canary-51c"]), owner="alice", privacy="private")
    conn.commit()
    body, key_id = root.execute("SELECT body, key_id FROM vestry.private_payloads").fetchone()  # type: ignore[misc]
    assert b"canary" not in body
    wrapped, kek_id = root.execute("SELECT wrapped, kek_id FROM vestry.owner_keys").fetchone()  # type: ignore[misc]
    key = KeyRing.load(clean.keyring).unwrap("alice", key_id, wrapped, kek_id)
    assert json.loads(key.open(PAYLOAD, job.id, body))["texts"] == ["canary-51c"]
    with pytest.raises(SealBroken):
        key.open(PAYLOAD, uuid4(), body)


def test_a_rolled_back_key_is_never_used_again(
    vestry: Vestry, conn: psycopg.Connection[Any], root: psycopg.Connection[Any]
) -> None:
    # Given a key made in transactions, and in a savepoint, that rolled back
    vestry.enqueue(conn, HELLO, owner="alice", privacy="private")
    conn.rollback()
    conn.execute("SAVEPOINT s")
    vestry.enqueue(conn, HELLO, owner="alice", privacy="private")
    conn.execute("ROLLBACK TO s")
    # When the owner's next job commits, then its key is the one stored, and then it is kept
    for _ in range(3):
        vestry.enqueue(conn, HELLO, owner="alice", privacy="private")
        conn.commit()
    stored = root.execute("SELECT key_id FROM vestry.owner_keys").fetchall()
    used = root.execute("SELECT DISTINCT key_id FROM vestry.private_payloads").fetchall()
    assert stored == used
    assert len(stored) == 1
    assert list(vestry._keys._keys) == ["alice"]


def test_two_producers_agree_on_a_new_owners_key(
    clean: DevStack, root: psycopg.Connection[Any]
) -> None:
    url, barrier, faults = clean.database_url("vestry_producer"), threading.Barrier(4), []

    def produce() -> None:
        with Vestry(url, clean.keyring) as client, psycopg.connect(url) as mine:
            barrier.wait()
            try:
                for number in range(20):
                    client.enqueue(mine, HELLO, owner=f"owner-{number}", privacy="private")
                    mine.commit()
            except Exception as error:
                faults.append(error)

    threads = [threading.Thread(target=produce) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert count(root, "jobs") == 80
    assert count(root, "owner_keys") == 20
    mismatched = root.execute(
        """SELECT count(*) FROM vestry.private_payloads p
           JOIN vestry.owner_keys k USING (owner) WHERE k.key_id <> p.key_id"""
    ).fetchone()
    assert mismatched == (0,)


def test_a_key_the_database_lost_is_looked_up_anew(
    vestry: Vestry, conn: psycopg.Connection[Any], root: psycopg.Connection[Any]
) -> None:
    for _ in range(2):
        vestry.enqueue(conn, HELLO, owner="alice", privacy="private")
        conn.commit()
    root.execute("DELETE FROM vestry.owner_keys")
    with pytest.raises(UnknownKey):
        vestry.enqueue(conn, HELLO, owner="alice", privacy="private")
    conn.rollback()
    vestry.enqueue(conn, HELLO, owner="alice", privacy="private")
    conn.commit()


def test_without_the_ring_only_shareable_jobs_can_be_made(
    clean: DevStack,
    conn: psycopg.Connection[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("VESTRY_KEYRING_FILE", raising=False)
    with Vestry(clean.database_url("vestry_producer")) as client:
        client.enqueue(conn, HELLO, owner="alice", privacy="shareable")
        with pytest.raises(SettingsError, match="key ring"):
            client.enqueue(conn, HELLO, owner="alice", privacy="private")
        conn.commit()


def call_function(conn: psycopg.Connection[Any], **given: Any) -> None:
    arguments: dict[str, Any] = {
        "p_owner": "alice", "p_privacy": "private", "p_latency": "bulk", "p_task": None,
        "p_quality": "adequate", "p_tier": None, "p_run_at": None, "p_deadline": None,
        "p_max_attempts": None, "p_ids": [uuid4()], "p_kinds": ["embedding"], "p_pools": ["gpu"],
        "p_models": None, "p_units": [1], "p_keep_payload": [True], "p_result_ttl_s": [60],
        "p_key_hashes": None, "p_content_hashes": None, "p_key_id": None, "p_sealed": None,
        "p_texts": None, "p_doc_jobs": None, "p_doc_ordinals": None, "p_doc_sources": None,
        "p_doc_hashes": None,
    } | given  # fmt: skip
    call = ", ".join(f"{name} => %({name})s" for name in arguments)
    conn.execute(f"SELECT * FROM vestry.enqueue_jobs_v1({call})", arguments)  # type: ignore[call-overload]


def test_the_database_itself_refuses_an_unsealed_private_payload(
    vestry: Vestry,
    conn: psycopg.Connection[Any],
    root: psycopg.Connection[Any],
) -> None:
    for owner in ("alice", "bob"):
        vestry.enqueue(conn, HELLO, owner=owner, privacy="private")
    conn.commit()
    keys = dict(root.execute("SELECT owner, key_id FROM vestry.owner_keys").fetchall())
    alice, bob = keys["alice"], keys["bob"]
    head = b"\x01" + alice.bytes
    sealed = head + bytes(40)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"p_texts": ["in the clear"]}, "VY002"),
        ({"p_sealed": [None], "p_key_id": alice}, "VY002"),
        ({"p_sealed": [b'{"texts":["' + bytes(60)], "p_key_id": alice}, "VY002"),
        ({"p_sealed": [head + b"too short"], "p_key_id": alice}, "VY002"),
        ({"p_sealed": [b"\x02" + sealed[1:]], "p_key_id": alice}, "VY002"),
        ({"p_sealed": [sealed]}, "VY002"),
        ({"p_sealed": [sealed], "p_key_id": uuid4()}, "VY002"),
        ({"p_sealed": [b"\x01" + bob.bytes + bytes(40)], "p_key_id": bob}, "VY002"),
        ({"p_sealed": [sealed], "p_key_id": alice, "p_texts": ["and clear"]}, "VY002"),
        ({"p_sealed": [sealed, sealed], "p_key_id": alice}, "VY002"),
        ({"p_sealed": [sealed], "p_key_id": alice, "p_privacy": "shareable"}, "VY003"),
        ({"p_sealed": [sealed], "p_key_id": alice, "p_privacy": None}, "VY003"),
        ({"p_sealed": [sealed], "p_key_id": alice, "p_pools": ["cloud"]}, "VY003"),
    ]
    for given, sqlstate in refused:
        with pytest.raises(psycopg.Error) as caught, conn.transaction():
            call_function(conn, **given)
        assert caught.value.sqlstate == sqlstate, given
    call_function(conn, p_sealed=[sealed], p_key_id=alice)
    conn.commit()
    assert count(root, "jobs") == 3


def test_a_forgotten_owner_is_refused(
    vestry: Vestry, conn: psycopg.Connection[Any], root: psycopg.Connection[Any]
) -> None:
    root.execute("INSERT INTO vestry.owners (owner, forgotten_at) VALUES ('gone', now())")
    for privacy in ("private", "shareable"):
        with pytest.raises(OwnerForgotten):
            vestry.enqueue(conn, HELLO, owner="gone", privacy=privacy)
        conn.rollback()


# -- idempotency ---------------------------------------------------------------------------------


@pytest.mark.parametrize("privacy", ["private", "shareable"])
def test_the_same_key_and_content_is_the_same_job(
    vestry: Vestry,
    conn: psycopg.Connection[Any],
    root: psycopg.Connection[Any],
    privacy: str,
) -> None:
    job = Embedding(documents=[Document("text", "id"), Document("other")], source="diary")
    first = vestry.enqueue(conn, job, owner="alice", privacy=privacy, idempotency_key="k")
    conn.commit()
    again = vestry.enqueue(conn, job, owner="alice", privacy=privacy, idempotency_key="k")
    conn.commit()
    assert (first.created, again.created) == (True, False)
    assert first.id == again.id
    assert count(root, "jobs") == 1
    generations = root.execute(f"SELECT DISTINCT generation FROM vestry.{privacy}_documents")
    assert generations.fetchall() == [(1,)]
    # Another owner, and the same owner's other privacy, have keys of their own.
    other = {"private": "shareable", "shareable": "private"}[privacy]
    assert vestry.enqueue(conn, job, owner="bob", privacy=privacy, idempotency_key="k").created
    assert vestry.enqueue(conn, job, owner="alice", privacy=other, idempotency_key="k").created


@pytest.mark.parametrize("privacy", ["private", "shareable"])
def test_the_same_key_with_other_content_conflicts_and_leaves_the_transaction_usable(
    vestry: Vestry,
    conn: psycopg.Connection[Any],
    root: psycopg.Connection[Any],
    privacy: str,
) -> None:
    first = vestry.enqueue(conn, HELLO, owner="alice", privacy=privacy, idempotency_key="k")
    conn.commit()
    different: list[tuple[Embedding, dict[str, Any]]] = [
        (Embedding(texts=["hello!"]), {}),
        (Embedding(texts=["hello"], model="another"), {}),
        (Embedding(texts=["hello"], input="query"), {}),
        (Embedding(texts=["hello"], keep_text=False), {}),
        (HELLO, {"task": "topic"}),
        (HELLO, {"quality": "best"}),
    ]
    for job, options in different:
        with pytest.raises(IdempotencyConflict) as caught:
            vestry.enqueue(
                conn, job, owner="alice", privacy=privacy, idempotency_key="k", **options
            )
        assert caught.value.jobs == (first.id,)
    # One conflict among many: none of them is enqueued
    with pytest.raises(IdempotencyConflict):
        vestry.enqueue_many(
            conn,
            (Embedding(texts=[f"text {number}"]) for number in range(2500)),
            owner="alice",
            privacy=privacy,
            idempotency_keys=[*(f"k{number}" for number in range(2499)), "k"],
        )
    conn.execute("SELECT 1")
    kept = vestry.enqueue(conn, HELLO, owner="alice", privacy=privacy, idempotency_key="k2")
    conn.commit()
    assert kept.created
    assert count(root, "jobs") == count(root, "idempotency_keys") == 2


def test_of_two_transactions_with_the_same_key_one_makes_the_job(
    vestry: Vestry, clean: DevStack, root: psycopg.Connection[Any]
) -> None:
    url = clean.database_url("vestry_producer")
    vestry_conn = psycopg.connect(url)
    vestry.enqueue(vestry_conn, HELLO, owner="alice", privacy="private")
    vestry_conn.commit()
    second: list[Any] = []

    def late() -> None:
        with psycopg.connect(url) as mine:
            second.append(
                vestry.enqueue(mine, HELLO, owner="alice", privacy="private", idempotency_key="k")
            )

    for ending in ("rollback", "commit"):
        # Given a transaction that used the key and is still open
        first = vestry.enqueue(
            vestry_conn, HELLO, owner="alice", privacy="private", idempotency_key=f"k{ending}"
        )
        thread = threading.Thread(
            target=lambda ending=ending: second.append(
                enqueue_and_commit(vestry, url, f"k{ending}")
            )
        )
        thread.start()
        thread.join(0.5)
        # Then another one waits for it
        assert thread.is_alive()
        getattr(vestry_conn, ending)()
        thread.join(10)
        # And its job stands if and only if the first was rolled back
        assert second[-1].created is (ending == "rollback")
        assert (second[-1].id == first.id) is (ending == "commit")
    vestry_conn.close()
    assert count(root, "jobs") == 3


def enqueue_and_commit(vestry: Vestry, url: str, key: str) -> Any:
    with psycopg.connect(url) as mine:
        return vestry.enqueue(mine, HELLO, owner="alice", privacy="private", idempotency_key=key)


# -- many ----------------------------------------------------------------------------------------


def test_one_bad_job_among_many_leaves_none(
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


def test_the_same_document_in_two_jobs_of_a_call_is_indexed_in_turn(
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
    assert rows == [(job.id, place) for place, job in enumerate(references, 1)]


MANY = """
import os, pathlib, re, resource, psycopg
from vestry import Embedding, Vestry
with Vestry() as vestry, psycopg.connect(os.environ["VESTRY_DATABASE_URL"]) as conn:
    jobs = (Embedding(texts=[f"line {n} " + "words " * 40]) for n in range(100_000))
    made = vestry.enqueue_many(conn, jobs, owner="alice", privacy="private")
    conn.commit()
# Where there is /proc: getrusage also counts what the parent held when it forked this process.
status = pathlib.Path("/proc/self/status")
if status.exists():
    peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", status.read_text())[1]) * 1024
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(len(made), peak)
"""


@pytest.mark.slow
def test_a_hundred_thousand_jobs_fit_in_a_small_producer(
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
        timeout=120,
    )
    made, peak = map(int, done.stdout.split())
    assert made == count(root, "jobs") == 100_000
    assert 20_000_000 < peak < 300_000_000
    turns = root.execute(
        "SELECT count(DISTINCT turn), min(turn), max(turn) FROM vestry.jobs"
    ).fetchone()
    assert turns == (100_000, 0, 99_999)


# -- waiting, results, cancelling, lanes -----------------------------------------------------------


@pytest.mark.parametrize("privacy", ["private", "shareable"])
def test_who_waits_is_woken_and_gets_the_result(
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
    keyring, answered = KeyRing.load(clean.keyring), [0.0]

    def work() -> None:
        time.sleep(1.3)  # between two of the waiter's own readings
        answered[0] = time.monotonic()
        succeed(root, keyring, job.id, {"vectors": [[1, 2]], "space": "s"})

    worker = threading.Thread(target=work)
    worker.start()
    result = vestry.wait(job, timeout=10)
    late = time.monotonic() - answered[0]
    worker.join()
    assert result == EmbeddingResult(((1.0, 2.0),), "s")
    assert vestry.result_json(str(job.id)) == {"vectors": [[1, 2]], "space": "s"}
    assert late < 0.5
    root.execute(f"DELETE FROM vestry.{privacy}_results")
    with pytest.raises(ResultGone):
        vestry.result(job)


def test_waiting_ends_in_time_and_says_how_a_job_ended(
    vestry: Vestry, conn: psycopg.Connection[Any], root: psycopg.Connection[Any]
) -> None:
    job, other = vestry.enqueue_many(conn, [HELLO] * 2, owner="alice", privacy="private")
    conn.commit()
    began = time.monotonic()
    with pytest.raises(WaitTimeout):
        vestry.wait(job, timeout=0.3)
    assert time.monotonic() - began < 1
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


def test_what_does_not_exist_is_said_not_to(vestry: Vestry, conn: psycopg.Connection[Any]) -> None:
    for ask in (vestry.status, vestry.result, vestry.wait, vestry.cancel):
        with pytest.raises(UnknownJob):
            ask(uuid4())
        with pytest.raises(InvalidInput):
            ask("not-an-id")
    with pytest.raises(UnknownLane):
        vestry.pause_lane("private.bulk.cloud")
    removed = vestry.delete_documents(
        conn, owner="nobody", privacy="private", source="diary", ids=["x"]
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
    left = root.execute(
        f"SELECT generation, deleted FROM vestry.{privacy}_documents ORDER BY 1"
    ).fetchall()
    assert left == [(1, False), (2, True), (2, True)]


def test_a_database_that_is_not_there_is_unavailable() -> None:
    with Vestry("postgresql://nobody:hunter2@127.0.0.1:1/none?connect_timeout=1") as client:
        client._pool.timeout = 1.0
        with pytest.raises(Unavailable) as caught:
            client.lanes()
    assert "hunter2" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_readers_survive_that_their_connections_are_cut(
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
    with Vestry() as client, psycopg.connect(url) as mine:
        client.enqueue(mine, HELLO, owner="alice", privacy="private")
        assert len(client.lanes()) == 10
    # The environment comes first, and a password may be in a file of its own.
    parts = psycopg.conninfo.conninfo_to_dict(url)
    (tmp_path / "password").write_text(f"{parts['password']}\n")
    bare = f"postgresql://{parts['user']}@{parts['host']}:{parts['port']}/{parts['dbname']}"
    monkeypatch.setenv("VESTRY_DATABASE_URL", bare)
    monkeypatch.setenv("VESTRY_DATABASE_PASSWORD_FILE", str(tmp_path / "password"))
    with Vestry() as client:
        assert len(client.lanes()) == 10
