"""State machine test: the job transitions on Postgres against a model in Python.

Hypothesis generates sequences of steps: leases expire, workers resume after their rescue, callers
cancel. Each step runs the system's own code on Postgres; after each the rows must match the model.
`VESTRY_MODEL_EXAMPLES` sets the number of sequences.
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
from tests.faults.expected import ExpectedJob, HeldLease, RoleConnections
from tests.faults.flows import Flow
from workers.execution.finish import write_outcomes
from workers.stack.dev_stack import DevStack

EXAMPLES = int(os.environ.get("VESTRY_MODEL_EXAMPLES", "100"))
STEPS = 40
LANE = "shareable.bulk.gpu"
POLICY = LeasePolicy("model", "shareable", 600.0, 900.0)
OUTCOMES: dict[str, Outcome] = {
    "succeeds": Succeeded({"vectors": [[1.0]], "space": "s"}),
    "fails permanently": Failed("bad_request", "test"),
    "fails retryably": Failed("backend_unavailable", "test", retryable=True),
    "fails uncounted": Failed("documents_locked", "test", uncounted=True),
}


class Machine(RuleBasedStateMachine):
    """One sequence."""

    connections: RoleConnections
    held = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.jobs: dict[UUID, ExpectedJob] = {}
        self.leases: dict[UUID, HeldLease] = {}
        self.tokens: set[UUID] = set()
        self.numbers = itertools.count(1)

    def teardown(self) -> None:
        self.connections.worker.rollback()
        for table in ("jobs", "leases", "receipts", "shareable_payloads", "shareable_results"):
            self.connections.admin.execute(f"DELETE FROM vestry.{table}")

    @initialize()
    def begin(self) -> None:
        """Enqueue some jobs: a sequence without any shows nothing."""
        self.enqueue(parents=[])
        self.enqueue(parents=[0, 1])

    # -- callers -----------------------------------------------------------------------------------

    @rule(parents=st.lists(st.integers(0, 3), min_size=0, max_size=4))
    def enqueue(self, parents: list[int]) -> None:
        positions = [None, *(1 + parent % (n + 1) for n, parent in enumerate(parents))]
        # Ascending ids: a repeated sequence is then the same to Postgres, too.
        ids = tuple(UUID(int=next(self.numbers)) for _ in positions)
        flows.enqueue(self.connections.producer, Flow("ann", "bulk", ids, tuple(positions)))
        for job, position in zip(ids, positions, strict=True):
            parent = None if position is None else ids[position - 1]
            self.jobs[job] = ExpectedJob(parent, len(ids) > 1)
            if parent is not None:
                self.jobs[job].state, self.jobs[job].has_start_tag = "waiting", False

    @rule(data=st.data(), cancelled=st.booleans())
    def stop_job(self, data: st.DataObject, cancelled: bool) -> None:
        """Cancel a job, or let its deadline pass."""
        job = data.draw(st.sampled_from(list(self.jobs)), label="job")
        if cancelled:
            states = self.connections.vestry.cancel(job)
            for each in self._family(job):
                self._end_job(each, "cancelled")
            assert states == {job: self.jobs[job].state}
            return
        self.connections.admin.execute(
            "UPDATE vestry.jobs SET deadline = now() - interval '1 s' WHERE id = %s", [job]
        )
        transitions.expire(self.connections.control)
        self._end_job(job, "expired")

    @precondition(lambda self: any(j.state in TERMINAL for j in self.jobs.values()))
    @rule(data=st.data())
    def replay(self, data: st.DataObject) -> None:
        dead = [
            job
            for job, expected in self.jobs.items()
            if expected.state == "dead" and expected.parent is None
        ]
        if not dead:
            return
        job = data.draw(st.sampled_from(dead), label="job")
        if not self.connections.vestry.replay(job).created:
            return
        replays = dict(
            self.connections.admin.execute(
                "SELECT replay_of, id FROM vestry.jobs WHERE replay_of IS NOT NULL"
            ).fetchall()
        )
        for old in self._family(job, died_waiting=True):
            original = self.jobs[old]
            parent = None if old == job else replays[original.parent]
            new = ExpectedJob(parent, original.flow, max_attempts=original.max_attempts)
            if parent is not None:
                new.state, new.has_start_tag = "waiting", False
            self.jobs[replays[old]] = new

    # -- workers -----------------------------------------------------------------------------------

    @rule(target=held, limit=st.integers(1, 4), quarantined=st.booleans())
    def claim(self, limit: int, quarantined: bool) -> Any:
        quarantined = quarantined and any(job.quarantined for job in self.jobs.values())
        claimable = {
            job
            for job, expected in self.jobs.items()
            if expected.state == "queued"
            and expected.has_start_tag
            and expected.quarantined == quarantined
        }
        lease = claims.claim(
            self.connections.worker,
            POLICY,
            LANE,
            ["embedding"],
            limit=limit,
            quarantined=quarantined,
        )
        self.connections.worker.commit()
        if lease is None:
            assert not claimable, "a runnable job was not claimed"
            return multiple()
        claimed = [job.id for job in lease.jobs]
        assert set(claimed) <= claimable
        assert len(claimed) == min(1 if quarantined else limit, len(claimable))
        assert lease.id not in self.tokens
        assert lease.exclusive == quarantined
        self.tokens.add(lease.id)
        for job in claimed:
            expected = self.jobs[job]
            expected.state, expected.has_start_tag, expected.lease = "running", False, lease.id
            expected.attempt += 1
        self.leases[lease.id] = HeldLease(lease, jobs=claimed)
        return lease.id

    @rule(token=held)
    def heartbeat(self, token: UUID) -> None:
        extended = claims.extend(self.connections.worker, [token], POLICY.lease_s)
        self.connections.worker.commit()
        assert extended == frozenset(self._held_jobs(token))
        # A heartbeat before the rescue renews an expired lease, except past the longest run.
        self.leases[token].expired = self.leases[token].expired and self.leases[token].overran

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), late=st.booleans())
    def finish(self, data: st.DataObject, late: bool) -> None:
        """Finish some or all jobs of a lease, perhaps after they were claimed by another worker."""
        running = {expected.lease for expected in self.jobs.values() if expected.lease}
        tokens = [token for token in self.leases if (token in running) != late]
        token = data.draw(st.sampled_from(tokens or list(self.leases)), label="token")
        lease = self.leases[token].lease
        jobs = data.draw(
            st.lists(st.sampled_from(lease.jobs), min_size=1, unique_by=lambda j: j.id),
            label="jobs",
        )
        chosen = {
            job.id: data.draw(st.sampled_from(sorted(OUTCOMES)), label="outcome") for job in jobs
        }
        held = set(self._held_jobs(token))
        with self.connections.worker.transaction():
            finished = write_outcomes(
                self.connections.worker,
                ShareableContent(),
                lease,
                {job: OUTCOMES[outcome] for job, outcome in chosen.items()},
                backoff_cap_s=3600.0,
            )
        for job, outcome in chosen.items():
            if job in held:
                self._finished(job, outcome)
                assert finished.states[job] == self.jobs[job].state
            else:
                assert finished.states[job] == "refused"
                expected = self.jobs[job]
                if (
                    self.leases[token].crash_counted
                    and expected.state not in TERMINAL
                    and expected.crashes
                ):
                    expected.crashes -= 1
                self.leases[token].crash_counted = False

    @rule(token=held)
    def release(self, token: UUID) -> None:
        with self.connections.worker.transaction():
            count = transitions.release(self.connections.worker, token)
        jobs = list(self._held_jobs(token))
        assert count == len(jobs)
        for job in jobs:
            self._requeue(job, attempts=-1)

    # -- time and the reconciler -------------------------------------------------------------------

    @rule(token=held, overran=st.booleans())
    def expire_lease(self, token: UUID, overran: bool) -> None:
        updated = self.connections.admin.execute(
            """UPDATE vestry.leases SET expires_at = now() - interval '1 s',
                 max_until = CASE WHEN %s THEN now() - interval '1 s' ELSE max_until END
               WHERE id = %s""",
            [overran, token],
        )
        if updated.rowcount:
            self.leases[token].expired = True
            self.leases[token].overran = self.leases[token].overran or overran

    @rule()
    def rescue(self) -> None:
        rescued = transitions.rescue(self.connections.control)
        quarantined = dead = 0
        for token, held in self.leases.items():
            if not held.expired:
                continue
            held.expired = False
            for job in list(self._held_jobs(token)):
                expected = self.jobs[job]
                expected.crashes += held.lease.exclusive
                held.crash_counted = held.lease.exclusive and not held.overran
                if held.lease.exclusive and (
                    expected.crashes >= transitions.MAX_EXCLUSIVE_CRASHES
                    or expected.attempt >= expected.max_attempts
                ):
                    expected.quarantined = False
                    self._end_job(job, "dead")
                    dead += 1
                else:
                    self._requeue(job, attempts=0 if held.lease.exclusive else -1)
                    expected.quarantined = True
                    quarantined += 1
        assert (rescued.quarantined, rescued.dead) == (quarantined, dead)

    @rule()
    def schedule_due(self) -> None:
        """Let the back-off of every job end."""
        self.connections.admin.execute(
            "UPDATE vestry.jobs SET run_at = now() WHERE state = 'queued' AND start_tag IS NULL"
        )
        transitions.schedule_due(self.connections.control)
        for expected in self.jobs.values():
            expected.has_start_tag = expected.has_start_tag or expected.state == "queued"

    @rule(token=held)
    def freeze_worker(self, token: UUID) -> None:
        """Freeze a worker until its lease is rescued; it may resume and finish."""
        self.expire_lease(token, overran=False)
        self.rescue()

    # -- invariants --------------------------------------------------------------------------------

    @invariant()
    def rows_match_model(self) -> None:
        rows = self.connections.admin.execute(
            """SELECT id, state, start_tag IS NOT NULL, attempt, crashes, quarantined, lease_id
               FROM vestry.jobs ORDER BY id"""
        ).fetchall()
        assert {row[0]: tuple(row[1:]) for row in rows} == {
            job: expected.row() for job, expected in self.jobs.items()
        }

    @invariant()
    def results_and_leases_match_model(self) -> None:
        with_result = {
            row[0]
            for row in self.connections.admin.execute("SELECT job_id FROM vestry.shareable_results")
        }
        assert with_result == {
            j for j, expected in self.jobs.items() if expected.state == "succeeded"
        }
        leases = {row[0] for row in self.connections.admin.execute("SELECT id FROM vestry.leases")}
        assert {expected.lease for expected in self.jobs.values() if expected.lease} <= leases

    # -- the model ---------------------------------------------------------------------------------

    def _held_jobs(self, token: UUID) -> Iterator[UUID]:
        return (job for job, expected in self.jobs.items() if expected.lease == token)

    def _children(self, job: UUID) -> list[UUID]:
        return [child for child, expected in self.jobs.items() if expected.parent == job]

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
        expected = self.jobs[job]
        expected.state, expected.has_start_tag, expected.lease = "queued", True, None
        expected.attempt += attempts

    def _finished(self, job: UUID, outcome: str) -> None:
        expected = self.jobs[job]
        if outcome == "succeeds":
            expected.quarantined = False
            self._end_job(job, "succeeded")
        elif outcome == "fails permanently" or (
            outcome == "fails retryably" and expected.attempt >= expected.max_attempts
        ):
            expected.quarantined = False
            self._end_job(job, "dead")
        else:
            self._requeue(job, attempts=-(outcome == "fails uncounted"))
            expected.has_start_tag = False

    def _end_job(self, job: UUID, state: str) -> None:
        """End a job that has not ended; release or end the jobs that wait for it."""
        expected = self.jobs[job]
        if expected.state in TERMINAL:
            return
        expected.state, expected.has_start_tag, expected.lease = state, False, None
        for child in self._children(job):
            if self.jobs[child].state != "waiting":
                continue
            if state == "succeeded":
                self.jobs[child].state, self.jobs[child].has_start_tag = "queued", True
            else:
                self._end_job(child, state if state in {"cancelled", "expired"} else "dead")


@pytest.mark.slow
@pytest.mark.timeout(600 + 3 * EXAMPLES)
def test_every_sequence_of_transitions_matches_model(clean: DevStack) -> None:
    with ExitStack() as opened:
        Machine.connections = RoleConnections(clean, opened)
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
