"""Lost claims: a claim whose COMMIT result is unknown is released, and costs no attempt."""

from __future__ import annotations

import time
from typing import Any
from uuid import UUID

import psycopg
import pytest

from models import claims, transitions
from models.claims import Lease, LeasePolicy
from tests.in_process_fetcher import LANE, runtime
from tests.job_helpers import state_and_attempt, submit, succeed_all
from tests.waiting import eventually
from vestry import Vestry
from workers import db, failpoints
from workers.execution.fetcher import JobFetcher
from workers.execution.lost_claims import UnconfirmedClaims
from workers.stack.dev_stack import DevStack


def lose_claim(worker: JobFetcher) -> None:
    """Claim a batch, and lose the connection after the COMMIT."""

    def abort(conn: psycopg.Connection[Any], _: Lease) -> None:
        db.abort_socket(conn)

    with (
        failpoints.installed({failpoints.AFTER_CLAIM_COMMIT: abort}),
        pytest.raises(psycopg.OperationalError),
    ):
        worker.executor.claim(LANE, ["embedding"])


def quarantine_queued(stack: DevStack, control: Any) -> None:
    """Claim all queued jobs with a lease that expires, and rescue them."""
    with psycopg.connect(stack.database_url("vestry_shareable")) as lost:
        assert claims.claim(lost, LeasePolicy("lost", "shareable", 0.001, 600), LANE, ["embedding"])
    eventually(lambda: transitions.rescue(control).quarantined > 0)


def crashes(control: Any) -> int:
    return int(control.execute("SELECT max(crashes) FROM vestry.jobs").fetchone()[0])


def leases(control: Any) -> list[UUID]:
    return [row[0] for row in control.execute("SELECT id FROM vestry.leases")]


def test_lost_claim_is_released_by_next_heartbeat(
    clean: DevStack, vestry: Vestry, conn: Any, control: Any
) -> None:
    jobs = submit(vestry, conn, "a", "b")
    with runtime(clean, succeed_all, heartbeat_s=0.3) as worker:
        lose_claim(worker)
        eventually(lambda: [state_and_attempt(conn, job) for job in jobs] == [("queued", 0)] * 2)
        eventually(lambda: not worker.executor.heartbeat.unconfirmed.pending())
        assert leases(control) == []


def test_lost_claim_is_released_before_next_claim(
    clean: DevStack, vestry: Vestry, conn: Any, control: Any
) -> None:
    (job,) = submit(vestry, conn, "a")
    with runtime(clean, succeed_all) as worker:
        lose_claim(worker)
        assert state_and_attempt(conn, job) == ("running", 1)
        batch = worker.executor.claim(LANE, ["embedding"])
        assert batch is not None
        # The lost lease is deleted: its expiry cannot count as a crash.
        assert leases(control) == [batch.lease.id]
        assert state_and_attempt(conn, job) == ("running", 1)
        worker.executor.run(batch)


def test_lost_claim_is_released_by_drain(clean: DevStack, vestry: Vestry, conn: Any) -> None:
    (job,) = submit(vestry, conn, "a")
    with runtime(clean, succeed_all) as worker:
        lose_claim(worker)
        assert state_and_attempt(conn, job) == ("running", 1)
        worker.drain()
        assert state_and_attempt(conn, job) == ("queued", 0)


def test_release_reverts_the_crash_of_a_rescued_exclusive_claim_once(
    clean: DevStack, vestry: Vestry, conn: Any, control: Any
) -> None:
    submit(vestry, conn, "a")
    quarantine_queued(clean, control)
    unconfirmed, url = UnconfirmedClaims(60), clean.database_url("vestry_shareable")
    with psycopg.connect(url, autocommit=True) as heartbeat:
        with psycopg.connect(url) as lost:
            policy = LeasePolicy("lost", "shareable", 0.001, 600)
            lease = claims.claim(lost, policy, LANE, ["embedding"], quarantined=True)
        assert lease is not None
        eventually(lambda: transitions.rescue(control).quarantined == 1)
        assert crashes(control) == 1
        # One crash is older than that claim.
        control.execute("UPDATE vestry.jobs SET crashes = 2")
        for _ in range(2):
            unconfirmed.add(lease)
            unconfirmed.release(heartbeat)
            assert crashes(control) == 1


def claim(conn: psycopg.Connection[Any]) -> Lease:
    lease = claims.claim(conn, LeasePolicy("test", "shareable", 60, 600), LANE, ["embedding"])
    assert lease is not None
    return lease


def test_claim_committed_after_a_check_is_released_by_the_next_check(
    clean: DevStack, vestry: Vestry, conn: Any
) -> None:
    (job,) = submit(vestry, conn, "a")
    unconfirmed, url = UnconfirmedClaims(60), clean.database_url("vestry_shareable")
    with psycopg.connect(url, autocommit=True) as heartbeat:
        with psycopg.connect(url) as slow:
            unconfirmed.add(claim(slow))
            unconfirmed.release(heartbeat)
            assert unconfirmed.pending()
            assert not unconfirmed.pending(unchecked=True)
        assert state_and_attempt(conn, job) == ("running", 1)
        unconfirmed.release(heartbeat)
        assert state_and_attempt(conn, job) == ("queued", 0)
        assert not unconfirmed.pending()


def test_uncommitted_claim_is_forgotten_after_its_lease(
    clean: DevStack, vestry: Vestry, conn: Any
) -> None:
    submit(vestry, conn, "a")
    unconfirmed, url = UnconfirmedClaims(0.5), clean.database_url("vestry_shareable")
    with psycopg.connect(url, autocommit=True) as heartbeat:
        with psycopg.connect(url) as broken:
            unconfirmed.add(claim(broken))
            broken.rollback()
        time.sleep(0.6)
        assert unconfirmed.pending(unchecked=True)
        unconfirmed.release(heartbeat)
        assert not unconfirmed.pending()


def test_locked_job_delays_the_release_of_no_other(
    clean: DevStack, vestry: Vestry, conn: Any, admin: Any
) -> None:
    jobs = submit(vestry, conn, "a", "b")
    # The leases have expired: a locked claim is kept in spite of that.
    unconfirmed, url = UnconfirmedClaims(0), clean.database_url("vestry_shareable")
    with psycopg.connect(url, autocommit=True) as heartbeat:
        for job in jobs:
            with psycopg.connect(url) as lost:
                lease = claims.claim(
                    lost,
                    LeasePolicy("test", "shareable", 60, 600),
                    LANE,
                    ["embedding"],
                    hint=job,
                    limit=1,
                )
                assert lease is not None
                unconfirmed.add(lease)
        with admin.transaction():
            admin.execute("SELECT FROM vestry.jobs WHERE id = %s FOR UPDATE", [jobs[0]])
            unconfirmed.release(heartbeat)
            assert state_and_attempt(conn, jobs[1]) == ("queued", 0)
            assert not unconfirmed.pending(unchecked=True)
        unconfirmed.release(heartbeat)
        assert state_and_attempt(conn, jobs[0]) == ("queued", 0)
        assert not unconfirmed.pending()
