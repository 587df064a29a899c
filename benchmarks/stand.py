"""A stack of the benchmark's own: real servers and workers in a private directory, gone afterwards."""

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
"""Settings under which an embedding job is a no-op: a hash instead of a model, one number for a
vector. All else is as ever: payload sealed and opened, result sealed, receipt."""


@dataclass(frozen=True, slots=True)
class Stand:
    """A running stack and its clients.

    Attributes:
        up: the processes.
        vestry: a producer.
        conn: the producer's own connection, committing by itself.
        admin: a superuser's, for looking at what row security would hide.
        valkey: the broker.
    """

    up: BackgroundStack
    vestry: Vestry
    conn: Connection
    admin: Connection
    valkey: ValkeyServer

    def one(self, query: str, *params: Any) -> Any:
        """The first column of a query's first row, as the superuser sees it."""
        row = self.admin.execute(query, params).fetchone()
        assert row is not None
        return row[0]

    def now(self) -> float:
        """The database's clock, in seconds since 1970: every duration is taken on one clock."""
        return float(self.one("SELECT extract(epoch FROM vestry.clock())"))


@contextmanager
def stand(settings: Mapping[str, str], only: Sequence[str]) -> Iterator[Stand]:
    """Run a stack until the end of the block.

    Args:
        settings: of every process.
        only: the processes besides Postgres and Valkey.
    """
    home = Path(tempfile.mkdtemp(prefix="vestry-bench-"))
    try:
        with start_background(home, settings, flower=False, only=only) as up:
            client = up.client
            url = PostgresServer(Home(home)).url(SUPERUSER)
            with (
                Vestry(client["database_url"], client["keyring"]) as vestry,
                psycopg.connect(client["database_url"], autocommit=True) as conn,
                psycopg.connect(url, autocommit=True) as admin,
            ):
                yield Stand(up, vestry, conn, admin, ValkeyServer(Home(home)))
    finally:
        remove(home)


def until(check: Callable[[], bool], *, within: float, every: float = 0.05) -> None:
    """Wait for something.

    Raises:
        TimeoutError: it did not come about within so many seconds.
    """
    end = time.monotonic() + within
    while not check():
        if time.monotonic() > end:
            raise TimeoutError("it did not come about in time")
        time.sleep(every)


BUSY = """
SELECT EXISTS (SELECT FROM vestry.jobs WHERE lane = %(lane)s AND state = 'queued')
    OR EXISTS (SELECT FROM vestry.jobs WHERE lease_id IS NOT NULL)"""


def drained(stand: Stand, lane: str, *, within: float) -> None:
    """Wait until a lane has neither queued nor running jobs; looks ten times a second."""

    def idle() -> bool:
        row = stand.admin.execute(BUSY, {"lane": lane}).fetchone()
        assert row is not None
        return not row[0]

    until(idle, within=within, every=0.1)


def worker_settled(stand: Stand) -> None:
    """Refuse to go on where a job did not succeed: a benchmark of failures is none."""
    bad = stand.one(
        "SELECT count(*) FROM vestry.jobs WHERE finished_at IS NOT NULL AND state <> 'succeeded'"
    )
    if bad:
        raise RuntimeError(f"{bad} jobs did not succeed")
