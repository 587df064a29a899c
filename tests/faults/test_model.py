"""Claim, heartbeat, rescue, finish and what else befalls a job, against a model of what ought to be.

Hypothesis thinks up sequences, in which leases run out, workers come back that were given up, and
callers cancel; real Postgres carries each step out with the system's own code, and after each the rows
must be what the model says. `VESTRY_MODEL_EXAMPLES` says how many sequences are tried.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from models import claims, transitions
from models.claims import LeasePolicy
from models.content import ShareableContent
from models.states import TERMINAL
from tasks.protocol import Failed, Outcome, Succeeded
from tests.faults import flows
from tests.faults.expected import Expected, Held, Site
from tests.faults.flows import Flow
from workers.execution.finish import write_outcomes
from workers.stack.dev_stack import DevStack

EXAMPLES = int(os.environ.get("VESTRY_MODEL_EXAMPLES", "100"))
STEPS = 40
LANE = "shareable.bulk.gpu"
TERMS = LeasePolicy("model", "shareable", 600.0, 900.0)
OUTCOMES: dict[str, Outcome] = {
    "succeeds": Succeeded({"vectors": [[1.0]], "space": "s"}),
    "fails for good": Failed("bad_request", "it is so"),
    "may be tried again": Failed("backend_unavailable", "it is so", retryable=True),
    "is nobody's fault": Failed("documents_locked", "it is so", uncounted=True),
}


class Machine(RuleBasedStateMachine):
    """One sequence."""

    site: Site
    held = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.jobs: dict[UUID, Expected] = {}
        self.leases: dict[UUID, Held] = {}
        self.tokens: set[UUID] = set()
        self.numbers = itertools.count(1)

    def teardown(self) -> None:
        self.site.worker.rollback()
        for table in ("jobs", "leases", "receipts", "shareable_payloads", "shareable_results"):
            self.site.admin.execute(f"DELETE FROM vestry.{table}")

    @initialize()
    def begin(self) -> None:
        """With some jobs: a sequence without any shows nothing."""
        self.enqueue(parents=[])
        self.enqueue(parents=[0, 1])

    # -- callers -----------------------------------------------------------------------------------

    @rule(parents=st.lists(st.integers(0, 3), min_size=0, max_size=4))
    def enqueue(self, parents: list[int]) -> None:
        places = [None, *(1 + place % (n + 1) for n, place in enumerate(parents))]
        # In order of their making: the same sequence is then the same to Postgres, too.
        ids = tuple(UUID(int=next(self.numbers)) for _ in places)
        flows.enqueue(self.site.producer, Flow("ann", "bulk", ids, tuple(places)))
        for job, place in zip(ids, places, strict=True):
            parent = None if place is None else ids[place - 1]
            self.jobs[job] = Expected(parent, len(ids) > 1)
            if parent is not None:
                self.jobs[job].state, self.jobs[job].in_line = "waiting", False

    @rule(data=st.data(), cancelled=st.booleans())
    def a_job_is_stopped(self, data: st.DataObject, cancelled: bool) -> None:
        """By a caller, or by its deadline."""
        job = data.draw(st.sampled_from(list(self.jobs)), label="job")
        if cancelled:
            told = self.site.vestry.cancel(job)
            for each in self._family(job):
                self._end(each, "cancelled")
            assert told == {job: self.jobs[job].state}
            return
        self.site.admin.execute(
            "UPDATE vestry.jobs SET deadline = now() - interval '1 s' WHERE id = %s", [job]
        )
        transitions.expire(self.site.control)
        self._end(job, "expired")

    @precondition(lambda self: any(j.state in TERMINAL for j in self.jobs.values()))
    @rule(data=st.data())
    def replay(self, data: st.DataObject) -> None:
        over = [job for job, told in self.jobs.items() if told.state == "dead"]
        over = [j for j in over if self.jobs[j].parent is None]
        if not over:
            return
        job = data.draw(st.sampled_from(over), label="job")
        if not self.site.vestry.replay(job).created:
            return
        made = dict(
            self.site.admin.execute(
                "SELECT replay_of, id FROM vestry.jobs WHERE replay_of IS NOT NULL"
            ).fetchall()
        )
        for old in self._family(job, died_waiting=True):
            told = self.jobs[old]
            parent = None if old == job else made[told.parent]
            new = Expected(parent, told.flow, max_attempts=told.max_attempts)
            if parent is not None:
                new.state, new.in_line = "waiting", False
            self.jobs[made[old]] = new

    # -- workers -----------------------------------------------------------------------------------

    @rule(target=held, limit=st.integers(1, 4), quarantined=st.booleans())
    def claim(self, limit: int, quarantined: bool) -> Any:
        quarantined = quarantined and any(told.quarantined for told in self.jobs.values())
        able = {
            job
            for job, told in self.jobs.items()
            if told.state == "queued" and told.in_line and told.quarantined == quarantined
        }
        lease = claims.claim(
            self.site.worker, TERMS, LANE, ["embedding"], limit=limit, quarantined=quarantined
        )
        self.site.worker.commit()
        if lease is None:
            assert not able, "a runnable job was not found"
            return multiple()
        taken = [job.id for job in lease.jobs]
        assert set(taken) <= able
        assert len(taken) == min(1 if quarantined else limit, len(able))
        assert lease.id not in self.tokens
        assert lease.exclusive == quarantined
        self.tokens.add(lease.id)
        for job in taken:
            told = self.jobs[job]
            told.state, told.in_line, told.lease = "running", False, lease.id
            told.attempt += 1
        self.leases[lease.id] = Held(lease, jobs=taken)
        return lease.id

    @rule(token=held)
    def beat(self, token: UUID) -> None:
        ours = claims.extend(self.site.worker, [token], TERMS.lease_s)
        self.site.worker.commit()
        assert ours == frozenset(self._holds(token))
        # Late is early enough where nobody took the jobs yet, but not past the longest run.
        self.leases[token].lost = self.leases[token].lost and self.leases[token].overran

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), late=st.booleans())
    def finish(self, data: st.DataObject, late: bool) -> None:
        """Of all its jobs or some; also long after they were given to somebody else."""
        running = {told.lease for told in self.jobs.values() if told.lease}
        able = [token for token in self.leases if (token in running) != late]
        able = able or list(self.leases)
        token = data.draw(st.sampled_from(able), label="token")
        lease = self.leases[token].lease
        some = data.draw(
            st.lists(st.sampled_from(lease.jobs), min_size=1, unique_by=lambda j: j.id),
            label="jobs",
        )
        chosen = {
            job.id: data.draw(st.sampled_from(sorted(OUTCOMES)), label="outcome") for job in some
        }
        holds = set(self._holds(token))
        with self.site.worker.transaction():
            done = write_outcomes(
                self.site.worker,
                ShareableContent(),
                lease,
                {job: OUTCOMES[outcome] for job, outcome in chosen.items()},
                backoff_cap_s=3600.0,
            )
        for job, outcome in chosen.items():
            if job in holds:
                self._finished(job, outcome)
                assert done.states[job] == self.jobs[job].state
            else:
                assert done.states[job] == "refused"
                told = self.jobs[job]
                if self.leases[token].blamed and told.state not in TERMINAL and told.crashes:
                    told.crashes -= 1
                self.leases[token].blamed = False

    @rule(token=held)
    def hand_back(self, token: UUID) -> None:
        with self.site.worker.transaction():
            count = transitions.release(self.site.worker, token)
        jobs = list(self._holds(token))
        assert count == len(jobs)
        for job in jobs:
            self._requeue(job, attempts=-1)

    # -- time, and what takes jobs back ------------------------------------------------------------

    @rule(token=held, overran=st.booleans())
    def a_lease_runs_out(self, token: UUID, overran: bool) -> None:
        updated = self.site.admin.execute(
            """UPDATE vestry.leases SET expires_at = now() - interval '1 s',
                 max_until = CASE WHEN %s THEN now() - interval '1 s' ELSE max_until END
               WHERE id = %s""",
            [overran, token],
        )
        if updated.rowcount:
            self.leases[token].lost = True
            self.leases[token].overran = self.leases[token].overran or overran

    @rule()
    def rescue(self) -> None:
        rescued = transitions.rescue(self.site.control)
        quarantined = dead = 0
        for token, told in self.leases.items():
            if not told.lost:
                continue
            told.lost = False
            for job in list(self._holds(token)):
                expected = self.jobs[job]
                expected.crashes += told.lease.exclusive
                told.blamed = told.lease.exclusive and not told.overran
                if told.lease.exclusive and (
                    expected.crashes >= transitions.MAX_EXCLUSIVE_CRASHES
                    or expected.attempt >= expected.max_attempts
                ):
                    expected.quarantined = False
                    self._end(job, "dead")
                    dead += 1
                else:
                    self._requeue(job, attempts=0 if told.lease.exclusive else -1)
                    expected.quarantined = True
                    quarantined += 1
        assert (rescued.quarantined, rescued.dead) == (quarantined, dead)

    @rule()
    def the_time_comes(self) -> None:
        """For what waits for its next attempt."""
        self.site.admin.execute(
            "UPDATE vestry.jobs SET run_at = now() WHERE state = 'queued' AND start_tag IS NULL"
        )
        transitions.schedule_due(self.site.control)
        for told in self.jobs.values():
            told.in_line = told.in_line or told.state == "queued"

    @rule(token=held)
    def a_worker_freezes(self, token: UUID) -> None:
        """For so long that its jobs are given to others; it may come back and finish."""
        self.a_lease_runs_out(token, overran=False)
        self.rescue()

    # -- what must be so ---------------------------------------------------------------------------

    @invariant()
    def rows_are_what_they_ought_to_be(self) -> None:
        rows = self.site.admin.execute(
            """SELECT id, state, start_tag IS NOT NULL, attempt, crashes, quarantined, lease_id
               FROM vestry.jobs ORDER BY id"""
        ).fetchall()
        assert {row[0]: tuple(row[1:]) for row in rows} == {
            job: told.row() for job, told in self.jobs.items()
        }

    @invariant()
    def results_are_of_successes_and_leases_of_running_jobs(self) -> None:
        with_result = {
            row[0] for row in self.site.admin.execute("SELECT job_id FROM vestry.shareable_results")
        }
        assert with_result == {j for j, told in self.jobs.items() if told.state == "succeeded"}
        known = {row[0] for row in self.site.admin.execute("SELECT id FROM vestry.leases")}
        assert {told.lease for told in self.jobs.values() if told.lease} <= known

    # -- the model's own moves ---------------------------------------------------------------------

    def _holds(self, token: UUID) -> Iterator[UUID]:
        return (job for job, told in self.jobs.items() if told.lease == token)

    def _children(self, job: UUID) -> list[UUID]:
        return [child for child, told in self.jobs.items() if told.parent == job]

    def _family(self, job: UUID, *, died_waiting: bool = False) -> list[UUID]:
        below = [
            each
            for child in self._children(job)
            if not died_waiting
            or (self.jobs[child].state == "dead" and not self.jobs[child].attempt)
            for each in self._family(child, died_waiting=died_waiting)
        ]
        return [job, *below]

    def _requeue(self, job: UUID, *, attempts: int) -> None:
        told = self.jobs[job]
        told.state, told.in_line, told.lease = "queued", True, None
        told.attempt += attempts

    def _finished(self, job: UUID, outcome: str) -> None:
        told = self.jobs[job]
        if outcome == "succeeds":
            told.quarantined = False
            self._end(job, "succeeded")
        elif outcome == "fails for good" or (
            outcome == "may be tried again" and told.attempt >= told.max_attempts
        ):
            told.quarantined = False
            self._end(job, "dead")
        else:
            self._requeue(job, attempts=-(outcome == "is nobody's fault"))
            told.in_line = False

    def _end(self, job: UUID, state: str) -> None:
        """A job ends, unless it has; those that wait for it are released, or end with it."""
        told = self.jobs[job]
        if told.state in TERMINAL:
            return
        told.state, told.in_line, told.lease = state, False, None
        for child in self._children(job):
            if self.jobs[child].state != "waiting":
                continue
            if state == "succeeded":
                self.jobs[child].state, self.jobs[child].in_line = "queued", True
            else:
                self._end(child, state if state in {"cancelled", "expired"} else "dead")


@pytest.mark.slow
@pytest.mark.timeout(600 + 3 * EXAMPLES)
def test_every_sequence_leaves_what_the_model_says(clean: DevStack) -> None:
    with ExitStack() as opened:
        Machine.site = Site(clean, opened)
        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=STEPS,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                print_blob=True,
                database=None,
            ),
        )
