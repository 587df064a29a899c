"""The asyncio client: the same guarantees on asynchronous connections."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from tests import producer_helpers
from tests.producer_helpers import HELLO
from vestry import (
    AsyncVestry,
    Embedding,
    IdempotencyConflict,
    InvalidInput,
    JobCancelled,
    NotFinished,
    UnknownJob,
    UnknownLane,
    WaitTimeout,
)
from workers.stack.dev_stack import DevStack


class Producer:
    """A client and a caller's connection, for one test's event loop."""

    def __init__(self, stack: DevStack) -> None:
        self.url = stack.database_url("vestry_producer")
        self.client = AsyncVestry(self.url, stack.keyring)

    async def __aenter__(self) -> tuple[AsyncVestry, psycopg.AsyncConnection[Any]]:
        self.conn = await psycopg.AsyncConnection.connect(self.url)
        return self.client, self.conn

    async def __aexit__(self, *_: object) -> None:
        await self.conn.close()
        await self.client.close()


def count(stack: DevStack, table: str) -> int:
    with psycopg.connect(stack.superuser_url) as root:
        return producer_helpers.count(root, table)


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 60))


@pytest.mark.parametrize("privacy", ["private", "shareable"])
def test_job_exists_if_and_only_if_the_transaction_commits(clean: DevStack, privacy: str) -> None:
    async def work() -> None:
        async with Producer(clean) as (client, conn):
            lost = await client.enqueue(conn, HELLO, owner="alice", privacy=privacy)
            await conn.rollback()
            assert count(clean, "jobs") == count(clean, "owner_keys") == 0
            with pytest.raises(UnknownJob):
                await client.status(lost)
            kept = await client.enqueue(conn, HELLO, owner="alice", privacy=privacy)
            await conn.commit()
            assert (await client.status(kept)).state == "queued"
            assert count(clean, "jobs") == 1

    run(work())


def test_enqueue_many_from_an_asynchronous_source_is_atomic(clean: DevStack) -> None:
    async def jobs(upto: int) -> AsyncIterator[Embedding]:
        for number in range(upto):
            await asyncio.sleep(0)
            yield Embedding(texts=[f"text {number}"])

    async def work() -> None:
        async with Producer(clean) as (client, conn):
            await client.enqueue(conn, HELLO, owner="a", privacy="private", idempotency_key="k")
            keys = [*(f"k{number}" for number in range(1200)), "k"]
            with pytest.raises(IdempotencyConflict):
                await client.enqueue_many(
                    conn, jobs(1201), owner="a", privacy="private", idempotency_keys=keys
                )
            refs = await client.enqueue_many(conn, jobs(1500), owner="a", privacy="private")
            await client.enqueue_many(conn, [HELLO] * 3, owner="a", privacy="private")
            await conn.commit()
            assert len({job.id for job in refs}) == 1500

    run(work())
    assert count(clean, "jobs") == 1 + 1500 + 3


def test_wait_times_out_and_raises_by_final_state(
    clean: DevStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vestry.aio.POLL_S", 30.0)

    async def work() -> None:
        async with Producer(clean) as (client, conn):
            job = await client.enqueue(
                conn, HELLO, owner="a", privacy="private", latency="interactive"
            )
            await conn.commit()
            with pytest.raises(NotFinished):
                await client.result(job)
            with pytest.raises(WaitTimeout):
                await client.wait(job, timeout=0.2)
            waiting = [asyncio.create_task(client.wait(job, timeout=20)) for _ in range(3)]
            await asyncio.sleep(1.3)
            began = time.monotonic()
            assert await client.cancel(job) == {job.id: "cancelled"}
            for waiter in waiting:
                with pytest.raises(JobCancelled):
                    await waiter
            assert time.monotonic() - began < 8

    run(work())


def test_invalid_calls_raise(clean: DevStack) -> None:
    async def work() -> None:
        async with Producer(clean) as (client, conn):
            with psycopg.connect(clean.database_url("vestry_producer")) as synchronous:
                for wrong in (synchronous, None, object()):
                    with pytest.raises(InvalidInput) as caught:
                        await client.enqueue(wrong, HELLO, owner="a", privacy="private")
                    assert caught.value.field == "conn"
            with pytest.raises(InvalidInput) as caught:
                await client.enqueue(conn, HELLO, owner="a", privacy="public")
            assert caught.value.field == "privacy"
            with pytest.raises(UnknownLane):
                await client.pause_lane("unknown")
            with pytest.raises(UnknownJob):
                await client.wait(uuid4(), timeout=1)
            await client.pause_lane("private.bulk.gpu")
            assert [lane.lane for lane in await client.lanes() if lane.paused] == [
                "private.bulk.gpu"
            ]
            await client.resume_lane("private.bulk.gpu")

    run(work())


def test_job_is_enqueued_by_an_asynchronous_sqlalchemy_session_and_connection(
    clean: DevStack,
) -> None:
    pytest.importorskip("greenlet", reason="SQLAlchemy's asyncio needs sqlalchemy[asyncio]")
    from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine  # noqa: PLC0415

    async def work() -> None:
        url = clean.database_url("vestry_producer").replace("postgresql:", "postgresql+psycopg:", 1)
        engine = create_async_engine(url)
        async with Producer(clean) as (client, _):
            async with AsyncSession(engine) as session:
                await client.enqueue(session, HELLO, owner="a", privacy="private")
                await session.rollback()
                await client.enqueue(session, HELLO, owner="a", privacy="private")
                await session.commit()
            async with engine.connect() as connection:
                await client.enqueue(connection, HELLO, owner="a", privacy="private")
                await connection.rollback()
                await client.enqueue_many(connection, [HELLO] * 2, owner="a", privacy="private")
                await connection.commit()
        await engine.dispose()

    run(work())
    assert count(clean, "jobs") == 3
