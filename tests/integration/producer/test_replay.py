"""Replay of finished jobs: complete, once, with followers, and never over newer documents."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import threading
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.producer_helpers import HELLO, attach, count, end, key_of, kill, succeed
from vestry import (
    AsyncVestry,
    Document,
    Embedding,
    InvalidInput,
    KeyRing,
    NotFinished,
    OwnerForgotten,
    PayloadGone,
    UnknownJob,
    Vestry,
)
from vestry.crypto.envelope import PAYLOAD, blob_field
from vestry.db.operations import uuid7
from workers.stack.dev_stack import DevStack

Root = psycopg.Connection[Any]
PRIVACIES = pytest.mark.parametrize("privacy", ["private", "shareable"])


def payload(root: Root, stack: DevStack, job: UUID, privacy: str) -> Any:
    row = root.execute(
        f"SELECT owner, body FROM vestry.{privacy}_payloads WHERE job_id = %s", [job]
    ).fetchone()
    assert row is not None
    if privacy == "shareable":
        return json.loads(row[1])
    return json.loads(key_of(root, stack, row[0]).open(PAYLOAD, job, row[1]))


def file_of(root: Root, stack: DevStack, job: UUID, owner: str, privacy: str) -> bytes:
    rows = root.execute(
        f"SELECT body FROM vestry.{privacy}_blobs WHERE job_id = %s AND name = 'scan' ORDER BY part",
        [job],
    ).fetchall()
    if privacy == "shareable":
        return b"".join(row[0] for row in rows)
    key = key_of(root, stack, owner)
    parts = enumerate(row[0] for row in rows)
    return b"".join(key.open(blob_field("scan", n), job, part) for n, part in parts)


SAME = """SELECT kind, task, quality, tier, model, owner, privacy, latency, pool, cost, max_attempts,
  keep_payload, result_ttl_s FROM vestry.jobs WHERE id = %s"""


@PRIVACIES
def test_replay_is_a_new_job_with_the_fields_of_the_old_one(
    vestry: Vestry, conn: psycopg.Connection[Any], root: Root, clean: DevStack, privacy: str
) -> None:
    job = vestry.enqueue(
        conn,
        Embedding(texts=["grüße"], model="m"),
        owner="ann",
        privacy=privacy,
        latency="interactive",
        task="query",
        quality="best",
        tier="gold",
        max_attempts=2,
        result_ttl_s=77,
        deadline=dt.datetime.now(dt.UTC) + dt.timedelta(hours=1),
    )
    conn.commit()
    attach(root, clean, job.id, "ann", privacy)
    kill(root, job.id)
    new = vestry.replay(job)
    assert new.created
    assert new.id != job.id
    assert root.execute(SAME, [new.id]).fetchone() == root.execute(SAME, [job.id]).fetchone()
    row = root.execute(
        "SELECT state, attempt, crashes, quarantined, error_code, deadline, replay_of, "
        "start_tag IS NULL FROM vestry.jobs WHERE id = %s",
        [new.id],
    ).fetchone()
    assert row == ("queued", 0, 0, False, None, None, job.id, False)
    assert payload(root, clean, new.id, privacy) == {"texts": ["grüße"], "input": "document"}
    assert file_of(root, clean, new.id, "ann", privacy) == b"page 0page 1"
    assert vestry.status(job).state == "dead"


def test_job_is_replayed_once(
    vestry: Vestry, conn: psycopg.Connection[Any], root: Root, clean: DevStack
) -> None:
    jobs = vestry.enqueue_many(conn, [HELLO] * 5, owner="ann", privacy="private")
    conn.commit()
    for job in jobs:
        kill(root, job.id)
    results: list[list[Any]] = []

    def replay() -> None:
        with Vestry(clean.database_url("vestry_producer"), clean.keyring) as other:
            results.append(other.replay(jobs))

    threads = [threading.Thread(target=replay) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({tuple(ref.id for ref in refs) for refs in results}) == 1
    assert sum(ref.created for refs in results for ref in refs) == len(jobs)
    assert count(root, "jobs") == 2 * len(jobs)
    # A replay that dies can be replayed too.
    again = results[0][0]
    kill(root, again.id)
    assert vestry.replay(again).created
    assert not vestry.replay(jobs[0]).created


@PRIVACIES
def test_idempotency_key_belongs_to_the_replay(
    vestry: Vestry, conn: psycopg.Connection[Any], root: Root, privacy: str
) -> None:
    def enqueue() -> Any:
        job = vestry.enqueue(conn, HELLO, owner="ann", privacy=privacy, idempotency_key="k")
        conn.commit()
        return job

    job = enqueue()
    kill(root, job.id)
    assert enqueue().id == job.id
    new = vestry.replay(job)
    again = enqueue()
    assert (again.id, again.created) == (new.id, False)


@PRIVACIES
def test_replay_indexes_the_documents_of_the_old_job(
    vestry: Vestry, conn: psycopg.Connection[Any], root: Root, privacy: str
) -> None:
    def index(text: str) -> Any:
        job = vestry.enqueue(
            conn,
            Embedding(documents=[Document(text, id="d")], source="s"),
            owner="ann",
            privacy=privacy,
        )
        conn.commit()
        return job

    first = index("old")
    index("new")
    kill(root, first.id)
    new = vestry.replay(first)
    generations = root.execute(
        "SELECT job_id, document_id, generation FROM vestry.job_documents WHERE job_id = ANY (%s)",
        [[first.id, new.id]],
    ).fetchall()
    assert len(generations) == 2
    assert {row[2] for row in generations} == {1}
    assert root.execute(f"SELECT generation FROM vestry.{privacy}_documents").fetchone() == (2,)


def test_one_job_that_cannot_be_replayed_raises_and_replays_none(
    vestry: Vestry, conn: psycopg.Connection[Any], root: Root, clean: DevStack
) -> None:
    gone, dead, queued = vestry.enqueue_many(conn, [HELLO] * 3, owner="ann", privacy="private")
    conn.commit()
    kill(root, dead.id)
    succeed(root, KeyRing.load(clean.keyring), gone.id, {"vectors": [], "space": "s"})
    root.execute("DELETE FROM vestry.private_payloads WHERE job_id = %s", [gone.id])
    with pytest.raises(PayloadGone) as caught:
        vestry.replay([dead, gone])
    assert caught.value.jobs == (gone.id,)
    with pytest.raises(NotFinished):
        vestry.replay([dead, queued])
    with pytest.raises(UnknownJob):
        vestry.replay([dead, uuid4()])
    with pytest.raises(InvalidInput):
        vestry.replay("no id")
    assert count(root, "jobs") == 3
    root.execute("UPDATE vestry.owners SET forgotten_at = now() WHERE owner = 'ann'")
    with pytest.raises(OwnerForgotten):
        vestry.replay(dead)


def flow(root: Root, stack: DevStack, privacy: str) -> list[UUID]:
    """A chain of three jobs: each follows the one before."""
    ids = sorted(uuid7() for _ in range(3))
    sealed = texts = key_id = None
    if privacy == "private":
        key = key_of(root, stack, "ann")
        key_id = key.key_id
        sealed = [key.seal(PAYLOAD, job, b'{"texts": ["x"]}') for job in ids]
    else:
        texts = ['{"texts": ["x"]}'] * 3
    root.execute(
        """SELECT * FROM vestry.enqueue_jobs_v1(
             'ann', %(privacy)s, 'bulk', p_ids => %(ids)s::uuid[], p_kinds => %(kinds)s::text[],
             p_costs => '{1,1,1}', p_keep_payload => '{t,t,t}', p_result_ttl_s => '{60,60,60}',
             p_parents => '{NULL,1,2}', p_key_id => %(key)s::uuid, p_sealed => %(sealed)s::bytea[],
             p_texts => %(texts)s::text[])""",
        {
            "privacy": privacy, "ids": ids, "kinds": ["embedding"] * 3, "key": key_id,
            "sealed": sealed, "texts": texts,
        },
    )  # fmt: skip
    return ids


def flow_fields(root: Root, job: UUID) -> tuple[Any, ...]:
    row = root.execute(
        "SELECT state, parent_id, root_id, error_code FROM vestry.jobs WHERE id = %s", [job]
    ).fetchone()
    assert row is not None
    return tuple(row)


@PRIVACIES
def test_jobs_that_died_waiting_are_replayed(
    vestry: Vestry, conn: psycopg.Connection[Any], root: Root, clean: DevStack, privacy: str
) -> None:
    vestry.enqueue(conn, HELLO, owner="ann", privacy=privacy)
    conn.commit()
    head, middle, tail = flow(root, clean, privacy)
    assert flow_fields(root, tail) == ("waiting", middle, head, None)
    kill(root, head)
    assert flow_fields(root, tail) == ("dead", middle, head, "parent_failed")
    with pytest.raises(InvalidInput, match="replayed with that one"):
        vestry.replay(middle)
    new = vestry.replay(head)
    replays = dict(
        root.execute("SELECT replay_of, id FROM vestry.jobs WHERE replay_of IS NOT NULL")
    )
    assert replays[head] == new.id
    assert flow_fields(root, new.id) == ("queued", None, new.id, None)
    assert flow_fields(root, replays[middle]) == ("waiting", new.id, new.id, None)
    assert flow_fields(root, replays[tail]) == ("waiting", replays[middle], new.id, None)
    assert payload(root, clean, replays[tail], privacy) == {"texts": ["x"]}
    end(root, new.id, "succeeded")
    assert flow_fields(root, replays[middle])[0] == "queued"
    assert vestry.replay(middle).id == replays[middle]
    # The replayed follower fails and ends its own follower; its parent is unchanged.
    kill(root, replays[middle])
    third = vestry.replay(replays[middle])
    assert flow_fields(root, third.id) == ("queued", new.id, new.id, None)
    assert count(root, "jobs") == 9


def test_follower_of_a_failed_replay_gets_the_succeeded_parent(
    vestry: Vestry, conn: psycopg.Connection[Any], root: Root, clean: DevStack
) -> None:
    """A follower of a parent that has ended would wait for ever."""
    head, middle, tail = flow(root, clean, "shareable")
    for job in (head, middle, tail):
        root.execute("UPDATE vestry.jobs SET started_at = now() WHERE id = %s", [job])
        end(root, job, "succeeded")
    again = vestry.replay(head).id
    kill(root, again)
    new = {}
    for row in conn.execute(
        """SELECT p.of, r.job_id, r.status
           FROM vestry.replay_jobs_v1(%(of)s::uuid[], %(ids)s::uuid[], NULL, NULL, %(texts)s::text[]) r
           JOIN unnest(%(of)s::uuid[]) WITH ORDINALITY p(of, ord) USING (ord)""",
        {
            "of": [head, middle, tail], "ids": sorted(uuid7() for _ in range(3)),
            "texts": ['{"texts": ["x"]}'] * 3,
        },
    ):  # fmt: skip
        new[row[0]] = row[1:]
    conn.commit()
    assert new[head] == (again, "existing")
    assert flow_fields(root, new[middle][0]) == ("queued", head, head, None)
    assert flow_fields(root, new[tail][0]) == ("waiting", new[middle][0], head, None)


def test_asynchronous_client_replays(
    vestry: Vestry, conn: psycopg.Connection[Any], root: Root, clean: DevStack
) -> None:
    one, other = vestry.enqueue_many(conn, [HELLO] * 2, owner="ann", privacy="private")
    conn.commit()
    for job in (one, other):
        kill(root, job.id)

    async def work() -> None:
        async with AsyncVestry(clean.database_url("vestry_producer"), clean.keyring) as client:
            assert len(await client.dead(owner="ann")) == 2
            new = await client.replay(one)
            again, second = await client.replay([one, other])
            assert (again.id, again.created, second.created) == (new.id, False, True)
            assert (await client.past_job(one)).replayed_as == new.id
            assert await client.degraded() == await client.dead() == []
            assert await client.receipts(one) == []

    asyncio.run(asyncio.wait_for(work(), 30))


def test_sql_function_validates_its_arguments(
    vestry: Vestry, conn: psycopg.Connection[Any], root: Root
) -> None:
    ann = vestry.enqueue(conn, HELLO, owner="ann", privacy="private")
    ben = vestry.enqueue(conn, HELLO, owner="ben", privacy="private")
    public = vestry.enqueue(conn, HELLO, owner="ann", privacy="shareable")
    running = vestry.enqueue(conn, HELLO, owner="ann", privacy="private")
    conn.commit()
    for job in (ann, ben, public):
        kill(root, job.id)
    sealed = root.execute(
        "SELECT body FROM vestry.private_payloads WHERE job_id = %s", [ann.id]
    ).fetchone()
    key = root.execute("SELECT key_id FROM vestry.owner_keys WHERE owner = 'ann'").fetchone()
    assert sealed is not None
    assert key is not None
    good: dict[str, Any] = {
        "of": [ann.id], "ids": [uuid7()], "key": key[0], "sealed": [sealed[0]], "texts": None
    }  # fmt: skip
    two = {"ids": sorted([uuid7(), uuid7()]), "sealed": [sealed[0]] * 2}
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("VY002", {"sealed": None, "texts": ["in the clear"]}),
        ("VY002", {"sealed": [b"in the clear, but long enough to look like it"]}),
        ("VY002", {"key": uuid4()}),
        ("VY003", {"of": [running.id]}),
        ("VY003", {"of": sorted([ann.id, ben.id]), **two}),
        ("VY003", {"of": [public.id]}),
        ("VY003", {"ids": []}),
        ("VY003", {"of": [ann.id] * 2, **two}),
        ("VY003", {"sealed": [None]}),
        ("VY003", {"sealed": None}),
    ]  # fmt: skip
    call = """SELECT status FROM vestry.replay_jobs_v1(
                %(of)s::uuid[], %(ids)s::uuid[], %(key)s::uuid, %(sealed)s::bytea[],
                %(texts)s::text[])"""
    for code, change in wrong:
        with pytest.raises(psycopg.Error) as refused:
            conn.execute(call, good | change)
        assert refused.value.sqlstate == code, change
        conn.rollback()
    assert conn.execute(call, good | {"of": [uuid4()]}).fetchall() == [("gone",)]
    assert conn.execute(call, good).fetchall() == [("created",)]
    conn.rollback()
    assert count(root, "jobs") == 4
