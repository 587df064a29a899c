"""Claims that were committed, and whose worker never heard of it: nothing ran, nothing is counted."""

from __future__ import annotations

import time
from typing import Any
from uuid import UUID

import psycopg
import pytest

from models import claims, transitions
from models.claims import Lease, LeasePolicy
from tests.job_helpers import state_and_attempt, submit, succeed_all
from tests.waiting import eventually
from tests.worker_runtime import LANE, runtime
from vestry import Vestry
from workers import db
from workers.execution.fetcher import JobFetcher
from workers.execution.lost_claims import UnconfirmedClaims
from workers.stack.dev_stack import DevStack


def claim_unheard(worker: JobFetcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """Claim, commit, and lose the connection before anybody says that it was committed."""
    commit = psycopg.Connection.commit

    def committed(self: psycopg.Connection[Any]) -> None:
        commit(self)
        db._abort_socket(self)

    with monkeypatch.context() as patch:
        patch.setattr(psycopg.Connection, "commit", committed)
        with pytest.raises(psycopg.OperationalError):
            worker._executor.claim(LANE, ["embedding"])


def make_suspect(stack: DevStack, control: Any) -> None:
    """Whatever is queued is lost in a batch, with a worker of which nobody knows more."""
    with psycopg.connect(stack.database_url("vestry_shareable")) as lost:
        assert claims.claim(lost, LeasePolicy("lost", "shareable", 0.001, 600), LANE, ["embedding"])
    eventually(lambda: transitions.rescue(control).suspects > 0)


def crashes(control: Any) -> int:
    return int(control.execute("SELECT max(crashes) FROM vestry.jobs").fetchone()[0])


def held(control: Any) -> list[UUID]:
    return [row[0] for row in control.execute("SELECT id FROM vestry.leases")]


def test_it_is_handed_back_with_the_next_beat(
    clean: DevStack, vestry: Vestry, conn: Any, control: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = submit(vestry, conn, "a", "b")
    with runtime(clean, succeed_all, heartbeat_s=0.3) as worker:
        claim_unheard(worker, monkeypatch)
        eventually(lambda: [state_and_attempt(conn, job) for job in jobs] == [("queued", 0)] * 2)
        eventually(lambda: not worker._executor.heartbeat.unconfirmed.pending())
        assert held(control) == []


def test_it_is_handed_back_before_the_next_claim(
    clean: DevStack, vestry: Vestry, conn: Any, control: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job,) = submit(vestry, conn, "a")
    with runtime(clean, succeed_all) as worker:
        claim_unheard(worker, monkeypatch)
        assert state_and_attempt(conn, job) == ("running", 1)
        opened = worker._executor.claim(LANE, ["embedding"])
        assert opened is not None
        # Its old lease is gone, so that nobody counts its end.
        assert held(control) == [opened.lease.id]
        assert state_and_attempt(conn, job) == ("running", 1)
        worker._executor.run(opened)


def test_it_is_handed_back_by_a_worker_that_ends(
    clean: DevStack, vestry: Vestry, conn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job,) = submit(vestry, conn, "a")
    with runtime(clean, succeed_all) as worker:
        claim_unheard(worker, monkeypatch)
        assert state_and_attempt(conn, job) == ("running", 1)
        worker.drain()
        assert state_and_attempt(conn, job) == ("queued", 0)


def test_a_suspect_that_was_rescued_first_has_its_crash_taken_back_once(
    clean: DevStack, vestry: Vestry, conn: Any, control: Any
) -> None:
    submit(vestry, conn, "a")
    make_suspect(clean, control)
    unheard, url = UnconfirmedClaims(60), clean.database_url("vestry_shareable")
    with psycopg.connect(url, autocommit=True) as heart:
        with psycopg.connect(url) as lost:
            terms = LeasePolicy("lost", "shareable", 0.001, 600)
            lease = claims.claim(lost, terms, LANE, ["embedding"], suspect=True)
        assert lease is not None
        eventually(lambda: transitions.rescue(control).suspects == 1)
        assert crashes(control) == 1
        # Another that it had before.
        control.execute("UPDATE vestry.jobs SET crashes = 2")
        for _ in range(2):
            unheard.add(lease)
            unheard.release(heart)
            assert crashes(control) == 1


def claimed(conn: psycopg.Connection[Any]) -> Lease:
    lease = claims.claim(conn, LeasePolicy("test", "shareable", 60, 600), LANE, ["embedding"])
    assert lease is not None
    return lease


def test_one_that_is_committed_after_it_was_asked_for_is_handed_back(
    clean: DevStack, vestry: Vestry, conn: Any
) -> None:
    (job,) = submit(vestry, conn, "a")
    unheard, url = UnconfirmedClaims(60), clean.database_url("vestry_shareable")
    with psycopg.connect(url, autocommit=True) as heart:
        with psycopg.connect(url) as slow:
            unheard.add(claimed(slow))
            unheard.release(heart)
            assert unheard.pending()
            assert not unheard.pending(unchecked=True)
        assert state_and_attempt(conn, job) == ("running", 1)
        unheard.release(heart)
        assert state_and_attempt(conn, job) == ("queued", 0)
        assert not unheard.pending()


def test_one_that_never_was_is_forgotten_once_its_lease_would_have_run_out(
    clean: DevStack, vestry: Vestry, conn: Any
) -> None:
    submit(vestry, conn, "a")
    unheard, url = UnconfirmedClaims(0.5), clean.database_url("vestry_shareable")
    with psycopg.connect(url, autocommit=True) as heart:
        with psycopg.connect(url) as broken:
            unheard.add(claimed(broken))
            broken.rollback()
        time.sleep(0.6)
        assert unheard.pending(unchecked=True)
        unheard.release(heart)
        assert not unheard.pending()


def test_a_job_that_somebody_holds_delays_none_of_the_others(
    clean: DevStack, vestry: Vestry, conn: Any, admin: Any
) -> None:
    jobs = submit(vestry, conn, "a", "b")
    # Their leases ran out: what cannot be seen may be there all the same.
    unheard, url = UnconfirmedClaims(0), clean.database_url("vestry_shareable")
    with psycopg.connect(url, autocommit=True) as heart:
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
                unheard.add(lease)
        with admin.transaction():
            admin.execute("SELECT FROM vestry.jobs WHERE id = %s FOR UPDATE", [jobs[0]])
            unheard.release(heart)
            assert state_and_attempt(conn, jobs[1]) == ("queued", 0)
            assert not unheard.pending(unchecked=True)
        unheard.release(heart)
        assert state_and_attempt(conn, jobs[0]) == ("queued", 0)
        assert not unheard.pending()
