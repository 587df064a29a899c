"""Jobs and handlers for tests of a worker's parts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar
from uuid import UUID

import psycopg

from tasks.protocol import Context, Job, Outcome, Succeeded
from vestry import Embedding, Vestry
from vestry.jobs.base import Prepared
from vestry.lanes import Pool
from workers.stack.dev_stack import DevStack

VECTORS = Succeeded({"vectors": [[1.0]], "space": "s"})


def submit(vestry: Vestry, conn: Any, *texts: str, **options: Any) -> list[UUID]:
    options = {"owner": "ann", "privacy": "shareable"} | options
    jobs = vestry.enqueue_many(conn, [Embedding(texts=[text]) for text in texts], **options)
    return [job.id for job in jobs]


def state_and_attempt(conn: Any, job: UUID) -> tuple[str, int]:
    row = conn.execute("SELECT state, attempt FROM vestry.jobs WHERE id = %s", [job]).fetchone()
    return (row[0], row[1])


def text_of(job: Job) -> str:
    return str(job.payload["texts"][0])


def succeed_all(batch: Sequence[Job], _: Context) -> list[Outcome]:
    return [VECTORS for _ in batch]


@contextmanager
def running_loop(
    stack: DevStack, loop: Callable[[psycopg.Connection[Any]], None], stop: Any
) -> Any:
    with psycopg.connect(stack.database_url("vestry_control"), autocommit=True) as conn:
        thread = threading.Thread(target=loop, args=(conn,))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(10)


@dataclass(frozen=True, slots=True)
class RawPayload:
    """A job with a payload that the library would not write."""

    payload: bytes
    kind: ClassVar[str] = "embedding"

    def prepare(self, digest: Any, payload_limit: int = 0) -> Prepared:
        del digest, payload_limit
        return Prepared(
            kind=self.kind, pool=Pool.GPU, model=None, payload=self.payload, cost=1,
            keep_payload=True,
        )  # fmt: skip
