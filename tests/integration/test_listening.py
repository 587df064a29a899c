"""Idle interactive workers are notified by Postgres, also without broker, dispatcher or hints."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import psycopg
import pytest

from tests.stacks import ECHO, StackSpec
from tests.waiting import eventually
from vestry import Embedding, Vestry
from vestry.jobs.results import JobRef
from workers.home import Home
from workers.stack.background import BackgroundStack
from workers.stack.postgres import SUPERUSER, PostgresServer

PROMPT_S = 3.0
"""Bound of a prompt round trip: 10 ms on an idle machine, more beside other tests, far below POLL_S."""
POLL_S = 30
WORKER = "private-interactive-gpu"
TRIES = 5
pytestmark = pytest.mark.stack(
    StackSpec(
        "listening",
        (*ECHO.settings, ("VESTRY_POLL_S", str(POLL_S))),
        ("dispatcher", "reconciler", WORKER),
    )
)


@pytest.fixture
def admin(up: BackgroundStack) -> Iterator[psycopg.Connection[Any]]:
    url = PostgresServer(Home(up.home)).url(SUPERUSER)
    with psycopg.connect(url, autocommit=True) as conn:
        eventually(lambda: listeners(conn) == 1)
        yield conn


def listeners(admin: Any) -> int:
    """Number of LISTEN connections of workers."""
    row = admin.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'vestry-%-listener'"
    ).fetchone()
    return int(row[0])


def disconnect_listener(admin: Any) -> None:
    """End the worker's LISTEN connection; it reconnects after RECONNECT_S."""
    ended = admin.execute(
        """SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
           WHERE application_name LIKE 'vestry-%-listener'"""
    ).fetchall()
    assert ended == [(True,)]


@contextmanager
def stopped(up: BackgroundStack, *names: str) -> Iterator[None]:
    pids = [pid for name in names if (pid := up.pid(name)) is not None]
    assert len(pids) == len(names)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def submit(vestry: Vestry, conn: Any) -> JobRef:
    return vestry.enqueue(
        conn, Embedding(texts=["x"]), owner="ann", privacy="private", latency="interactive"
    )


def seconds_and_hinted(admin: Any, job: JobRef) -> tuple[float, bool]:
    """Seconds from enqueue to end, by the database's clock; whether the job had a hint."""
    row = admin.execute(
        """SELECT extract(epoch FROM finished_at - created_at)::float8, hinted_at IS NOT NULL
           FROM vestry.jobs WHERE id = %s AND state = 'succeeded'""",
        [job.id],
    ).fetchone()
    return row[0], row[1]


@pytest.mark.parametrize("names", [("dispatcher",), ("valkey",), ("dispatcher", "valkey")])
def test_job_runs_promptly_without_broker_or_dispatcher(
    up: BackgroundStack, vestry: Vestry, conn: Any, admin: Any, names: tuple[str, ...]
) -> None:
    times = []
    with stopped(up, *names):
        for _ in range(TRIES):
            job = submit(vestry, conn)
            vestry.wait(job, timeout=20)
            times.append(seconds_and_hinted(admin, job)[0])
    assert median(times) < PROMPT_S


def test_burst_of_jobs_runs_promptly(up: BackgroundStack, vestry: Vestry, conn: Any) -> None:
    with stopped(up, "dispatcher"):
        # In one transaction, which is one notification; then in one transaction each.
        with conn.transaction():
            jobs = [submit(vestry, conn) for _ in range(40)]
        jobs += [submit(vestry, conn) for _ in range(40)]
        for job in jobs:
            vestry.wait(job, timeout=20)


def test_worker_without_its_listen_connection_gets_a_hint(
    vestry: Vestry, conn: Any, admin: Any
) -> None:
    times = []
    for _ in range(4 * TRIES):
        eventually(lambda: listeners(admin) == 1)
        disconnect_listener(admin)
        job = submit(vestry, conn)
        vestry.wait(job, timeout=20)
        seconds, hinted = seconds_and_hinted(admin, job)
        if hinted:  # else the listener reconnected before the job was committed
            times.append(seconds)
        if len(times) == TRIES:
            break
    assert len(times) == TRIES, "the jobs were not claimed on a hint"
    assert median(times) < PROMPT_S


def test_reconnected_listener_claims_missed_jobs(
    up: BackgroundStack, vestry: Vestry, conn: Any, admin: Any
) -> None:
    with stopped(up, "dispatcher"):
        disconnect_listener(admin)
        job = submit(vestry, conn)
        begun = time.monotonic()
        vestry.wait(job, timeout=20)
    assert time.monotonic() - begun < POLL_S / 3
    assert not seconds_and_hinted(admin, job)[1]
