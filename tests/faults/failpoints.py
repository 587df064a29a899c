"""The named points at which the laboratory kills or freezes a process, or drops an answer.

A forked process reaches each through a failpoint of the system (`workers.failpoints`).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, NoReturn
from uuid import UUID

import psycopg

from models.claims import Lease
from models.states import State
from models.transitions import Rescued
from tests.faults.ledger import History
from workers import failpoints
from workers.execution.executor import Executor
from workers.execution.finish import Finished

AFTER_CLAIM: Final = "after claim"
AFTER_INFERENCE: Final = "after inference"
INSIDE_FINISH: Final = "inside finish transaction"
INSIDE_FINISH_DEAD: Final = "inside finish transaction, with a dead job"
BEFORE_COMMIT: Final = "before COMMIT answer: not committed"
AFTER_COMMIT: Final = "after COMMIT"
AFTER_HEARTBEAT: Final = "after heartbeat"
POINTS: Final = (
    AFTER_CLAIM,
    AFTER_INFERENCE,
    INSIDE_FINISH,
    INSIDE_FINISH_DEAD,
    BEFORE_COMMIT,
    AFTER_COMMIT,
    AFTER_HEARTBEAT,
)
"""Points at which a worker is killed."""
FROZEN: Final = "frozen after inference"
COMMIT_ANSWER_LOST: Final = "COMMIT answer lost"
CLAIM_ANSWER_LOST: Final = "claim answer lost"
INSIDE_RESCUE: Final = "inside rescue transaction"
AFTER_RESCUE: Final = "after rescue"
INSIDE_RESCUE_DEAD: Final = "inside rescue transaction, with a dead job"
RECONCILER_POINTS: Final = (INSIDE_RESCUE, AFTER_RESCUE, INSIDE_RESCUE_DEAD)
BEFORE_PUBLISH: Final = "before publish"
AFTER_PUBLISH: Final = "after publish"
DISPATCHER_POINTS: Final = (BEFORE_PUBLISH, AFTER_PUBLISH)

Reached = Callable[[str], bool]


def kill() -> NoReturn:
    """End this process as a power failure would."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


class Trigger:
    """Decides whether a process acts at a point that it passes.

    Args:
        point: the one point at which it acts; None for none.
        nth: pass at which it acts; at CLAIM_ANSWER_LOST, at each multiple of it.
        history: gets a line for each action.

    Attributes:
        spared: no action, except at CLAIM_ANSWER_LOST.
        token: lease of the current batch, for the history.
    """

    def __init__(self, point: str | None, nth: int, history: History) -> None:
        self._point = point
        self._nth = nth
        self._history = history
        self._passed = 0
        self.spared = False
        self.token: UUID | None = None

    def __call__(self, point: str) -> bool:
        """Whether to act at a point now."""
        # An unconfirmed claim must not count as a crash, so it may also hit jobs that crashed once.
        if self._point != point or (self.spared and point != CLAIM_ANSWER_LOST):
            return False
        self._passed += 1
        # Repeatedly: a missing release is visible only if one job's claims lose two answers.
        if point == CLAIM_ANSWER_LOST:
            acts = self._passed % self._nth == 0
        else:
            acts = self._passed == self._nth
        if acts:
            self._history.write("point", point=point, pid=os.getpid(), token=self.token)
        return acts


def arm_worker(executor: Executor, point: str | None, nth: int, history: History) -> None:
    """Install the callbacks of a worker."""
    reached = Trigger(point, nth, history)
    worker = _WorkerCallbacks(executor, reached, history)
    failpoints.install({
        failpoints.AFTER_CLAIM_COMMIT: worker.after_claim_commit,
        failpoints.AFTER_CLAIM: worker.after_claim,
        failpoints.AFTER_INFERENCE: worker.after_inference,
        failpoints.INSIDE_FINISH: worker.inside_finish,
        failpoints.BEFORE_FINISH_COMMIT: _killing(reached, BEFORE_COMMIT),
        failpoints.AFTER_FINISH_COMMIT: worker.after_finish_commit,
        failpoints.AFTER_FINISH: _killing(reached, AFTER_COMMIT),
        failpoints.AFTER_HEARTBEAT: _killing(reached, AFTER_HEARTBEAT),
    })  # fmt: skip


class _WorkerCallbacks:
    def __init__(self, executor: Executor, reached: Trigger, history: History) -> None:
        self._executor = executor
        self._reached = reached
        self._history = history

    def after_claim_commit(self, conn: psycopg.Connection[Any], lease: Lease) -> None:
        self._reached.token = lease.id
        if self._reached(CLAIM_ANSWER_LOST):
            conn.close()
            raise psycopg.OperationalError("the answer to a claim was lost")

    def after_claim(self, lease: Lease) -> None:
        # Two crashes of exclusive runs make a job dead, by design. Each quarantined job's worker is
        # killed once at most, so that an innocent dead job is always the system's error. Spared until
        # the query has returned: the heartbeat's thread may be at a point.
        self._reached.spared = lease.exclusive
        self._reached.token = lease.id
        if lease.exclusive:
            # Without the database it stays spared, and the batch continues: the laboratory's query
            # must not lose a claim.
            with suppress(psycopg.Error), self._executor.pool.connection() as conn:
                row = conn.execute(
                    "SELECT max(crashes) FROM vestry.jobs WHERE lease_id = %s", [lease.id]
                ).fetchone()
                self._reached.spared = row is None or bool(row[0])
        if self._reached(AFTER_CLAIM):
            kill()

    def after_inference(self, lease: Lease) -> None:
        if self._reached(AFTER_INFERENCE):
            kill()
        if self._reached(FROZEN):
            jobs = [str(job.id) for job in lease.jobs]
            self._history.write("frozen", pid=os.getpid(), token=lease.id, jobs=jobs)
            os.kill(os.getpid(), signal.SIGSTOP)

    def inside_finish(self, _: Lease, finished: Finished) -> None:
        if State.DEAD in finished.states.values() and self._reached(INSIDE_FINISH_DEAD):
            kill()
        if self._reached(INSIDE_FINISH):
            kill()

    def after_finish_commit(self, conn: psycopg.Connection[Any]) -> None:
        if self._reached(COMMIT_ANSWER_LOST):
            conn.close()
            raise psycopg.OperationalError("the answer to COMMIT was lost")


def arm_reconciler(reached: Reached) -> None:
    """Install the callbacks of a reconciler."""

    def inside_rescue(rescued: Rescued) -> None:
        if (rescued.quarantined or rescued.dead) and reached(INSIDE_RESCUE):
            kill()
        if rescued.dead and reached(INSIDE_RESCUE_DEAD):
            kill()

    def after_rescue(rescued: Rescued) -> None:
        if (rescued.quarantined or rescued.dead) and reached(AFTER_RESCUE):
            kill()

    failpoints.install({
        failpoints.INSIDE_RESCUE: inside_rescue,
        failpoints.AFTER_RESCUE: after_rescue,
    })  # fmt: skip


def arm_dispatcher(reached: Reached) -> None:
    """Install the callbacks of a dispatcher."""
    failpoints.install({
        failpoints.AFTER_HINT_STAMP: _killing(reached, BEFORE_PUBLISH),
        failpoints.AFTER_PUBLISH: _killing(reached, AFTER_PUBLISH),
    })  # fmt: skip


def _killing(reached: Reached, point: str) -> Callable[[object], None]:
    def callback(_: object) -> None:
        if reached(point):
            kill()

    return callback
