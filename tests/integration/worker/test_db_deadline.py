"""Deadlines of database waits: a wait on an unanswered connection ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from tests.faults.proxy import Mode, Proxy
from tests.in_process_fetcher import runtime
from tests.job_helpers import state_and_attempt, submit, succeed_all
from tests.waiting import eventually
from vestry import Vestry
from workers import db
from workers.reconciler import Reconciler
from workers.settings import Settings
from workers.stack.dev_stack import DevStack

Through = Callable[[str], str]


@pytest.fixture(autouse=True)
def short_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(db, "MIN_DEADLINE_S", 1.5)
    monkeypatch.setattr(db, "DEADLINE_CHECK_S", 0.1)


def test_wait_on_an_unanswered_statement_fails_at_its_deadline(
    clean: DevStack, proxy: Proxy, through_proxy: Through
) -> None:
    url = through_proxy(clean.database_url("vestry_shareable"))
    with psycopg.connect(url, autocommit=True) as conn:
        with db.deadline(conn, 1.5):
            conn.execute("SELECT 1")
        proxy.mode = Mode.HELD
        begun = time.monotonic()
        with pytest.raises(psycopg.OperationalError), db.deadline(conn, 1.5):
            conn.execute("SELECT 1")
        assert 1.4 < time.monotonic() - begun < 20


def test_worker_on_half_open_connections_recovers(
    clean: DevStack, proxy: Proxy, through_proxy: Through, vestry: Vestry, conn: Any
) -> None:
    url = through_proxy(clean.database_url("vestry_shareable"))
    options = {"database_url": url, "lease_s": 1.0, "heartbeat_s": 0.3, "slots": 1}
    with runtime(clean, succeed_all, **options) as worker:
        worker.start()
        (first,) = submit(vestry, conn, "x")
        eventually(lambda: state_and_attempt(conn, first)[0] == "succeeded", within=30)
        # The present connections stay open and are never answered; new ones work.
        with proxy._lock:
            held, proxy._ends = proxy._ends, set()
            for end in held:
                proxy._selector.unregister(end.socket)
        (second,) = submit(vestry, conn, "x")
        eventually(lambda: state_and_attempt(conn, second)[0] == "succeeded", within=30)
        for end in held:
            end.socket.close()


def test_advisory_lock_of_an_unresponsive_reconciler_passes_to_another(
    clean: DevStack, proxy: Proxy, through_proxy: Through, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "IDLE_SESSION_TIMEOUT_S", 1.0)
    leaders: list[str] = []

    def reconcile(url: str, name: str, stop: threading.Event) -> threading.Thread:
        settings = Settings(database_url=url, poll_s=0.1)

        class Recording(Reconciler):
            def _grace(self, conn: Any) -> float:
                leaders.append(name)
                return super()._grace(conn)

        body = Recording(settings, stop).run
        thread = threading.Thread(
            target=db.run_with_reconnect, args=(settings, name, stop, body), daemon=True
        )
        thread.start()
        return thread

    url = clean.database_url("vestry_control")
    unresponsive, stop = threading.Event(), threading.Event()
    first = reconcile(through_proxy(url), "first", unresponsive)
    eventually(lambda: leaders == ["first"], within=30)
    proxy.mode = Mode.HELD
    second = reconcile(url, "next", stop)
    try:
        eventually(lambda: leaders[-1] == "next", within=30)
        assert leaders.count("next") == 1
    finally:
        unresponsive.set()
        stop.set()
        proxy.mode = Mode.CUT
        first.join(10)
        second.join(10)
