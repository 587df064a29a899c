"""A temporary stack for one benchmark: real servers and workers in their own directory."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from vestry import Vestry
from workers.home import Home
from workers.stack.background import BackgroundStack, start_background
from workers.stack.postgres import SUPERUSER, PostgresServer
from workers.stack.server_dir import remove
from workers.stack.valkey import ValkeyServer

Connection = psycopg.Connection[Any]

NO_OP = {"VESTRY_EMBEDDING_BACKEND": "echo", "VESTRY_EMBEDDING_MODEL": "echo-1"}
"""Settings under which an embedding job is a no-op: a hash instead of a model, a vector of one number.
Payload and result are sealed and the receipt is written as for any job."""


@dataclass(frozen=True, slots=True)
class BenchStack:
    """A running stack and its clients.

    Attributes:
        processes: the stack's processes.
        vestry: a producer.
        conn: the producer's connection, in autocommit.
        admin: a superuser's connection in autocommit, which row security does not restrict.
        valkey: the broker.
    """

    processes: BackgroundStack
    vestry: Vestry
    conn: Connection
    admin: Connection
    valkey: ValkeyServer

    def scalar(self, query: str, *params: Any) -> Any:
        """First column of the first row of a superuser's query."""
        row = self.admin.execute(query, params).fetchone()
        assert row is not None
        return row[0]

    def database_time(self) -> float:
        """The database's clock in seconds since 1970, comparable with the timestamps of rows."""
        return float(self.scalar("SELECT extract(epoch FROM vestry.clock())"))


@contextmanager
def bench_stack(settings: Mapping[str, str], only: Sequence[str]) -> Iterator[BenchStack]:
    """Run a stack until the end of the block.

    Args:
        settings: environment of every process.
        only: names of the processes besides Postgres and Valkey.
    """
    home = Path(tempfile.mkdtemp(prefix="vestry-bench-"))
    try:
        with start_background(home, settings, flower=False, only=only) as processes:
            client = processes.client
            url = PostgresServer(Home(home)).url(SUPERUSER)
            with (
                Vestry(client["database_url"], client["keyring"]) as vestry,
                psycopg.connect(client["database_url"], autocommit=True) as conn,
                psycopg.connect(url, autocommit=True) as admin,
            ):
                yield BenchStack(processes, vestry, conn, admin, ValkeyServer(Home(home)))
    finally:
        remove(home)


def wait_until(check: Callable[[], bool], *, within: float, every: float = 0.05) -> None:
    """Poll a condition until it is true.

    Args:
        check: the condition.
        within: timeout in seconds.
        every: poll interval in seconds.

    Raises:
        TimeoutError: the condition was not true within the timeout.
    """
    deadline = time.monotonic() + within
    while not check():
        if time.monotonic() > deadline:
            raise TimeoutError(f"the condition was not true within {within:g} s")
        time.sleep(every)


UNFINISHED = """
SELECT EXISTS (SELECT FROM vestry.jobs WHERE lane = %(lane)s AND state = 'queued')
    OR EXISTS (SELECT FROM vestry.jobs WHERE lease_id IS NOT NULL)"""


def wait_until_drained(stack: BenchStack, lane: str, *, within: float) -> None:
    """Wait until the lane has no queued job and no job runs; polls ten times per second."""

    def idle() -> bool:
        row = stack.admin.execute(UNFINISHED, {"lane": lane}).fetchone()
        assert row is not None
        return not row[0]

    wait_until(idle, within=within, every=0.1)


def check_all_succeeded(stack: BenchStack) -> None:
    """Fail the benchmark if a finished job did not succeed: its figures would be wrong."""
    failed = stack.scalar(
        "SELECT count(*) FROM vestry.jobs WHERE finished_at IS NOT NULL AND state <> 'succeeded'"
    )
    if failed:
        raise RuntimeError(f"{failed} jobs did not succeed")
