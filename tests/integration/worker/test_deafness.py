"""A worker that is cut off without being told so: it notices, and works on or is started again."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tasks.protocol import Context, Job, Outcome, Succeeded
from tests.faults.proxy import Mode, Proxy
from tests.waiting import eventually
from tests.worker_runtime import LANE, runtime
from vestry import Embedding, Vestry
from workers import db
from workers.execution import watchdog
from workers.execution.heartbeat import OVERRUN_EXIT_CODE
from workers.home import CHECKOUT
from workers.reconciler import Reconciler
from workers.settings import Settings
from workers.stack.dev_stack import DevStack
from workers.stack.process import base_environment

VECTORS = Succeeded({"vectors": [[1.0]], "space": "s"})


@pytest.fixture
def proxy(clean: DevStack) -> Iterator[Proxy]:
    with Proxy(clean.postgres.port) as running:
        yield running


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(db, "MIN_DEADLINE_S", 1.5)
    monkeypatch.setattr(db, "DEADLINE_CHECK_S", 0.1)


def through(proxy: Proxy, url: str) -> str:
    return make_conninfo(**(conninfo_to_dict(url) | {"port": str(proxy.port)}))


def at_once(batch: Sequence[Job], _: Context) -> list[Outcome]:
    return [VECTORS for _ in batch]


def submit(vestry: Vestry, conn: Any) -> UUID:
    job = vestry.enqueue(conn, Embedding(texts=["x"]), owner="ann", privacy="shareable")
    return job.id


def test_a_wait_for_a_server_that_says_nothing_is_cut(clean: DevStack, proxy: Proxy) -> None:
    url = through(proxy, clean.database_url("vestry_shareable"))
    with psycopg.connect(url, autocommit=True) as conn:
        with db.deadline(conn, 1.5):
            conn.execute("SELECT 1")
        proxy.mode = Mode.HELD
        begun = time.monotonic()
        with pytest.raises(psycopg.OperationalError), db.deadline(conn, 1.5):
            conn.execute("SELECT 1")
        assert 1.4 < time.monotonic() - begun < 20


def test_a_worker_on_half_open_connections_works_on_once_they_are_cut(
    clean: DevStack, proxy: Proxy, vestry: Vestry, conn: Any
) -> None:
    url = through(proxy, clean.database_url("vestry_shareable"))
    options = {"database_url": url, "lease_s": 1.0, "heartbeat_s": 0.3, "slots": 1}
    with runtime(clean, at_once, **options) as worker:
        worker.start()
        first = submit(vestry, conn)
        eventually(lambda: vestry.status(first).state == "succeeded", within=30)
        # What is open now stays so for ever, and is never answered; new connections are well.
        with proxy._lock:
            held, proxy._ends = proxy._ends, set()
            for end in held:
                proxy._selector.unregister(end.socket)
        second = submit(vestry, conn)
        eventually(lambda: vestry.status(second).state == "succeeded", within=30)
        for end in held:
            end.socket.close()


def test_a_reconciler_that_is_gone_without_a_word_leaves_its_lock_to_another(
    clean: DevStack, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workers import db  # noqa: PLC0415 - its constant is patched

    monkeypatch.setattr(db, "IDLE_SESSION_TIMEOUT_S", 1.0)
    told: list[str] = []

    def reconcile(url: str, name: str, stop: threading.Event) -> threading.Thread:
        settings = Settings(database_url=url, poll_s=0.1)

        class Told(Reconciler):
            def _grace(self, conn: Any) -> float:
                told.append(name)
                return super()._grace(conn)

        body = Told(settings, stop).run
        thread = threading.Thread(
            target=db.run_with_reconnect, args=(settings, name, stop, body), daemon=True
        )
        thread.start()
        return thread

    url = clean.database_url("vestry_control")
    gone, stop = threading.Event(), threading.Event()
    first = reconcile(through(proxy, url), "gone", gone)
    eventually(lambda: told == ["gone"], within=30)
    proxy.mode = Mode.HELD
    second = reconcile(url, "next", stop)
    try:
        eventually(lambda: told[-1] == "next", within=30)
        assert told.count("next") == 1
    finally:
        gone.set()
        stop.set()
        proxy.mode = Mode.CUT
        first.join(10)
        second.join(10)


def test_a_worker_waits_for_its_database_and_ends_where_it_cannot_start(
    clean: DevStack, proxy: Proxy, tmp_path: Path
) -> None:
    proxy.mode = Mode.CUT
    ready, log = tmp_path / "ready", tmp_path / "log"
    environment = base_environment() | {
        "VESTRY_DATABASE_URL": through(proxy, clean.database_url("vestry_shareable")),
        "VESTRY_BROKER_URL": clean.broker_url("shareable"),
        "VESTRY_PRIVACY": "shareable",
        "VESTRY_LANES": LANE,
        "VESTRY_EMBEDDING_BACKEND": "echo",
        "VESTRY_LEASE_S": "4",
        "VESTRY_HEARTBEAT_S": "1",
        "VESTRY_READY_FILE": str(ready),
    }
    with log.open("w") as out:
        worker = subprocess.Popen(
            [sys.executable, "-m", "workers.worker"],
            env=environment, cwd=CHECKOUT, stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        eventually(lambda: "waiting for the database" in log.read_text())
        proxy.mode = Mode.OPEN
        eventually(ready.exists)
    finally:
        worker.kill()
        worker.wait()
    # Celery itself writes down that a worker's beginning failed, and goes on without it.
    with psycopg.connect(clean.superuser_url, autocommit=True) as admin:
        revoke = "EXECUTE ON FUNCTION vestry.ensure_space_v1 {} vestry_shareable"
        admin.execute("REVOKE " + revoke.format("FROM"))
        try:
            done = subprocess.run(
                [sys.executable, "-m", "workers.worker"],
                env=environment, cwd=CHECKOUT, capture_output=True, text=True, timeout=180,
                check=False,
            )  # fmt: skip
        finally:
            admin.execute("GRANT " + revoke.format("TO"))
    assert done.returncode != 0
    assert "the worker cannot start (InsufficientPrivilege)" in done.stderr


class Heart:
    """A heartbeat that says what it is told to."""

    def __init__(self) -> None:
        self.last_round_at = time.monotonic()
        self.leases: list[Any] = []

    def held_leases(self) -> list[Any]:
        return self.leases


@pytest.fixture
def ends() -> list[int]:
    return []


@pytest.fixture
def watch(clean: DevStack, ends: list[int]) -> watchdog.StallWatchdog:
    def connect() -> psycopg.Connection[Any]:
        return psycopg.connect(clean.database_url("vestry_shareable"), autocommit=True)

    heart: Any = Heart()
    return watchdog.StallWatchdog(connect, [LANE], ["embedding"], heart, 1.2, end=ends.append)


def test_an_idle_worker_beside_work_ends_itself(
    vestry: Vestry, conn: Any, watch: watchdog.StallWatchdog, ends: list[int]
) -> None:
    watch.start()
    time.sleep(1.8)
    watch.record_poll()
    assert ends == [], "there is no work"
    submit(vestry, conn)
    eventually(lambda: OVERRUN_EXIT_CODE in ends, within=30)
    watch.stop()


@pytest.mark.parametrize("why", ["busy", "moving", "taken", "paused", "later"])
def test_who_has_a_reason_not_to_take_a_job_is_left_alone(
    clean: DevStack, vestry: Vestry, conn: Any, watch: watchdog.StallWatchdog, why: str
) -> None:
    ends: list[int] = []
    watch._end = ends.append
    job = submit(vestry, conn)
    with psycopg.connect(clean.superuser_url) as other:
        if why == "taken":
            other.execute("SELECT FROM vestry.jobs WHERE id = %s FOR UPDATE", [job])
        if why == "paused":
            vestry.pause_lane(LANE)
        if why == "busy":
            watch._heartbeat.leases = ["one"]  # type: ignore[attr-defined]
        if why == "later":
            other.execute("UPDATE vestry.jobs SET turn = NULL, run_at = now() + interval '1 h'")
            other.commit()
        watch.start()
        for _ in range(15):
            time.sleep(0.2)
            watch.record_poll()
            watch._heartbeat.last_round_at = time.monotonic()
            if why == "moving":
                watch.record_progress()
        watch.stop()
    assert ends == []


@pytest.mark.parametrize("thread", ["heartbeat", "feeders"])
def test_a_worker_with_a_thread_that_stands_still_ends_itself(
    watch: watchdog.StallWatchdog, ends: list[int], thread: str
) -> None:
    watch.start()
    until = time.monotonic() + 30
    while not ends and time.monotonic() < until:
        time.sleep(0.1)
        if thread == "feeders":
            watch._heartbeat.last_round_at = time.monotonic()
        else:
            watch.record_poll()
    watch.stop()
    assert ends[0] == OVERRUN_EXIT_CODE
