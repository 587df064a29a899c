"""The named points at which a process of the laboratory dies, freezes, or loses an answer.

They are wrapped around the system's own functions in a forked process.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, NoReturn
from uuid import UUID

import psycopg
from psycopg_pool import PoolTimeout

from models import claims, transitions
from models.claims import Lease
from models.states import State
from tests.faults.ledger import History
from workers.execution import finish
from workers.execution.executor import ClaimedBatch, Executor
from workers.execution.finish import Finisher

CLAIMED: Final = "after the claim"
COMPUTED: Final = "after inference"
FINISHING: Final = "in the finishing transaction"
BURYING: Final = "in the move to dead"
UNANSWERED: Final = "before the commit's answer, not committed"
FINISHED: Final = "after the commit"
BEATEN: Final = "after a heartbeat"
POINTS: Final = (CLAIMED, COMPUTED, FINISHING, BURYING, UNANSWERED, FINISHED, BEATEN)
"""Where a worker may be killed."""
FREEZE: Final = "frozen after inference"
CUT: Final = "the commit's answer is lost"
UNHEARD: Final = "the claim's answer is lost"
RESCUING: Final = "before the rescue's commit"
RESCUED: Final = "after the rescue"
CONDEMNING: Final = "before the commit of a death by crashes"
RECONCILER_POINTS: Final = (RESCUING, RESCUED, CONDEMNING)
STAMPED: Final = "before publishing"
PUBLISHED: Final = "after publishing"
DISPATCHER_POINTS: Final = (STAMPED, PUBLISHED)

Here = Callable[[str], bool]


def die() -> NoReturn:
    """As a machine does that loses its power."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


class Counter:
    """Says when a point is passed for the time that was meant; at `UNHEARD` at each such time."""

    def __init__(self, point: str | None, nth: int, history: History) -> None:
        self._point = point
        self._nth = nth
        self._history = history
        self._passed = 0
        self.spared = False
        self.token: UUID | None = None

    def __call__(self, point: str) -> bool:
        """Whether to do here what was planned."""
        # A claim that nobody heard of is no crash: it may befall whom a crash would be the second of.
        if self._point != point or (self.spared and point != UNHEARD):
            return False
        self._passed += 1
        # Again and again: one job must lose two such answers for anybody to see what they cost.
        if self._passed % self._nth if point == UNHEARD else self._passed != self._nth:
            return False
        self._history.write("point", point=point, pid=os.getpid(), token=self.token)
        return True


def arm(executor: Executor, point: str | None, nth: int, history: History) -> None:
    """Wrap a worker's steps so that the point does what it says."""
    here = Counter(point, nth, history)

    def begin(opened: ClaimedBatch) -> None:
        # Twice killed while running alone is, by design, what a poison job looks like. Here each
        # suspect's worker is killed once at most: a dead innocent is then always the system's fault.
        # Spared until that is known: the heartbeat's thread may be at a point.
        here.spared = opened.lease.exclusive
        here.token = opened.lease.id
        if not opened.lease.exclusive:
            return
        # With the database away it stays spared, and the batch goes on: the question is the
        # laboratory's own, and must not cost a claim.
        with suppress(psycopg.Error, PoolTimeout), executor.pool.connection() as conn:
            row = conn.execute(
                "SELECT max(crashes) FROM vestry.jobs WHERE lease_id = %s", [opened.lease.id]
            ).fetchone()
            here.spared = row is None or bool(row[0])

    _wrap_claim(begin, here)
    _wrap_handling(here, history)
    _wrap_finish(here)
    beat, settle = claims.extend, transitions.settle

    def beaten(conn: Any, tokens: Any, lease_s: float) -> Any:
        held = beat(conn, tokens, lease_s)
        if tokens and here(BEATEN):
            die()
        return held

    def settled(conn: Any, token: UUID, settlements: Any) -> None:
        settle(conn, token, settlements)
        if any(s.state is State.DEAD for s in settlements) and here(BURYING):
            die()

    claims.extend = beaten
    transitions.settle = settled


def _wrap_claim(begin: Callable[[ClaimedBatch], None], here: Counter) -> None:
    claim = Executor.claim

    def claimed(self: Executor, *args: Any, **named: Any) -> ClaimedBatch | None:
        opened = claim(self, *args, **named)
        if opened is not None:
            begin(opened)
            if here(CLAIMED):
                die()
        return opened

    commit = Executor._commit

    def committed(self: Executor, conn: psycopg.Connection[Any], lease: Lease) -> ClaimedBatch:
        opened = commit(self, conn, lease)
        here.token = lease.id
        if here(UNHEARD):
            conn.close()
            raise psycopg.OperationalError("the answer to a claim was lost")
        return opened

    Executor.claim = claimed  # type: ignore[method-assign]
    Executor._commit = committed  # type: ignore[method-assign]


def _wrap_handling(here: Here, history: History) -> None:
    handle = Executor._handle

    def handled(self: Executor, opened: ClaimedBatch) -> Any:
        outcomes = handle(self, opened)
        if here(COMPUTED):
            die()
        if here(FREEZE):
            jobs = [str(job.id) for job in opened.lease.jobs]
            history.write("frozen", pid=os.getpid(), token=opened.lease.id, jobs=jobs)
            os.kill(os.getpid(), signal.SIGSTOP)
        return outcomes

    Executor._handle = handled  # type: ignore[method-assign]


def _wrap_finish(here: Here) -> None:
    original, once = finish.finish, Finisher._once

    def finished(*args: Any, **named: Any) -> Any:
        done = original(*args, **named)
        if here(FINISHING):
            die()
        return done

    def committed(self: Finisher, *args: Any) -> Any:
        with _commit_that_dies(here):
            done = once(self, *args)
        if here(FINISHED):
            die()
        return done

    finish.finish = finished
    Finisher._once = committed  # type: ignore[method-assign]


@contextmanager
def _commit_that_dies(here: Here) -> Iterator[None]:
    """A COMMIT whose outcome the worker never learns."""
    commit = psycopg.Connection.commit

    def cut(self: psycopg.Connection[Any]) -> None:
        if here(UNANSWERED):
            die()
        commit(self)
        if here(CUT):
            self.close()
            raise psycopg.OperationalError("the answer to COMMIT was lost")

    psycopg.Connection.commit = cut  # type: ignore[method-assign]
    try:
        yield
    finally:
        psycopg.Connection.commit = commit  # type: ignore[method-assign]
