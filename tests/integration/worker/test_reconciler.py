"""The reconciler requeues jobs of expired leases, and no lock or slow pruning prevents it."""

from __future__ import annotations

import threading
import time
from typing import Any

import psycopg
import pytest

from models import claims, transitions
from models.claims import LeasePolicy
from tests.in_process_fetcher import LANE, runtime
from tests.job_helpers import running_loop, state_and_attempt, submit, succeed_all
from tests.waiting import eventually
from vestry import Vestry
from workers import reconciler
from workers.db import open_pool
from workers.reconciler import Reconciler
from workers.settings import Settings
from workers.stack.dev_stack import DevStack


def test_leases_get_a_grace_of_one_lease_after_an_outage_of_the_database(
    clean: DevStack, vestry: Vestry, conn: Any, admin: Any, control: Any
) -> None:
    stop = threading.Event()
    up_s = admin.execute(
        "SELECT extract(epoch FROM clock_timestamp() - pg_postmaster_start_time())::float8"
    ).fetchone()[0]
    # The database has been up for longer than a lease: the grace is over.
    assert Reconciler(Settings(lease_s=up_s, heartbeat_s=0.01), stop)._grace(control) == 0
    # Otherwise the remainder of the grace applies.
    longer = Settings(lease_s=up_s + 1000)
    assert 900 < Reconciler(longer, stop)._grace(control) <= 1000

    jobs = submit(vestry, conn, "a", "b")
    with psycopg.connect(clean.database_url("vestry_shareable")) as worker:
        assert claims.claim(
            worker, LeasePolicy("test", "shareable", 0.001, 600), LANE, ["embedding"]
        )
    settings = Settings(lease_s=4.0, heartbeat_s=0.1, poll_s=0.05)
    instance = Reconciler(settings, stop)
    time.sleep(max(0.0, settings.lease_s + 0.5 - up_s))
    assert instance._grace(control) == 0
    # As after a reconnection.
    begun = time.monotonic()
    with running_loop(clean, instance.run, stop):
        time.sleep(0.6)
        assert [state_and_attempt(conn, job)[0] for job in jobs] == ["running"] * 2
        eventually(lambda: state_and_attempt(conn, jobs[0])[0] == "queued", within=30)
    assert time.monotonic() - begun >= 4.0


def test_pruning_that_waits_for_a_lock_does_not_prevent_rescue(
    clean: DevStack, vestry: Vestry, conn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciler, "PRUNE_EVERY_S", 0.0)
    stop = threading.Event()
    job = submit(vestry, conn, "a")[0]
    instance = Reconciler(Settings(lease_s=0.5, heartbeat_s=0.1, poll_s=0.05), stop)

    with psycopg.connect(clean.superuser_url) as holding:
        holding.execute("LOCK TABLE vestry.private_results IN ACCESS EXCLUSIVE MODE")
        waits = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        with running_loop(clean, instance.run, stop):
            eventually(lambda: holding.execute(waits).fetchone() == (1,))
            with psycopg.connect(clean.database_url("vestry_shareable")) as worker:
                policy = LeasePolicy("test", "shareable", 0.001, 600)
                assert claims.claim(worker, policy, LANE, ["embedding"])
            eventually(lambda: state_and_attempt(conn, job)[0] == "queued")


def test_pruning_that_timed_out_takes_smaller_steps_for_a_while(
    clean: DevStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[int] = []

    def prune(_: Any, __: float, limit: int) -> int:
        limits.append(limit)
        if len(limits) <= 2:
            raise psycopg.errors.QueryCanceled
        return 0

    monkeypatch.setattr(reconciler, "PRUNE_EVERY_S", 0.0)
    monkeypatch.setattr("workers.reconciler.retention.prune_jobs", prune)
    stop = threading.Event()
    with running_loop(clean, Reconciler(Settings(poll_s=0.01), stop).run, stop):
        eventually(lambda: len(limits) >= 6)
    assert limits[:6] == [1000, 250, 62, 124, 248, 496]


def test_locked_job_does_not_prevent_the_rescue_of_others(
    clean: DevStack, vestry: Vestry, conn: Any, admin: Any, control: Any
) -> None:
    jobs = submit(vestry, conn, *"abcd")
    with psycopg.connect(clean.database_url("vestry_shareable")) as worker:
        for _ in range(2):
            policy = LeasePolicy("test", "shareable", 0.001, 600)
            assert claims.claim(worker, policy, LANE, ["embedding"], limit=2)
    control.execute("SET lock_timeout = '10s'")
    leases = "SELECT count(*) FROM vestry.leases"
    with psycopg.connect(clean.superuser_url) as holding:
        holding.execute("SELECT FROM vestry.jobs WHERE id = %s FOR UPDATE", [jobs[0]])
        assert transitions.rescue(control).quarantined == 3
        assert admin.execute(leases).fetchone() == (1,)
        assert transitions.rescue(control).quarantined == 0
    assert transitions.rescue(control).quarantined == 1
    assert admin.execute(leases).fetchone() == (0,)


def test_locks_of_a_process_frozen_in_a_transaction_end_within_a_lease(
    clean: DevStack, vestry: Vestry, conn: Any, control: Any
) -> None:
    job = submit(vestry, conn, "a")[0]
    url = clean.database_url("vestry_shareable")
    lock = "SELECT FROM vestry.jobs WHERE id = %s FOR UPDATE"
    control.execute("SET statement_timeout = '30s'")
    acquired = []

    def freeze() -> None:
        with (
            open_pool(url, "frozen", lease_s=1.0, size=1) as pool,
            pool.connection() as frozen,
            frozen.pipeline(),
        ):
            frozen.execute(lock, [job]).fetchone()
            control.execute(lock, [job])
            acquired.append(job)
            frozen.execute(lock, [job]).fetchone()

    with pytest.raises(psycopg.Error):
        freeze()
    assert acquired


def test_finish_of_a_frozen_process_reverts_its_crash_unless_it_overran(
    clean: DevStack, vestry: Vestry, conn: Any, admin: Any, control: Any
) -> None:
    (job,) = submit(vestry, conn, "x")
    admin.execute("UPDATE vestry.jobs SET quarantined = true")
    crashes = "SELECT crashes FROM vestry.jobs WHERE id = %s"
    with runtime(clean, succeed_all) as worker:
        for overran in (False, True):
            batch = worker.executor.claim(LANE, ["embedding"], quarantined=True)
            assert batch is not None
            admin.execute(
                """UPDATE vestry.leases SET expires_at = now() - interval '1 s',
                     max_until = CASE WHEN %s THEN now() - interval '1 s' ELSE max_until END""",
                [overran],
            )
            assert transitions.rescue(control).quarantined == 1
            assert admin.execute(crashes, [job]).fetchone() == (1,)
            finished = worker.executor.run(batch)
            assert finished.states == {job: "refused"}
            # The crash of a job that ran for VESTRY_MAX_RUN_S stays counted.
            assert admin.execute(crashes, [job]).fetchone() == (1 if overran else 0,)
    assert state_and_attempt(conn, job) == ("queued", 2)
