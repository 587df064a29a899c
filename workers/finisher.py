"""Gets a batch's outcomes committed: repeats what is safe to repeat, isolates what cannot be stored."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import psycopg
from psycopg_pool import ConnectionPool

from models.claims import Lease
from models.content import Content
from tasks.protocol import Failed, Outcome
from workers.bounded import session
from workers.database import AWAY
from workers.finishing import Finished, finish

log = logging.getLogger(__name__)

RETRY_S: Final = 1.0
"""Pause before a finishing transaction is tried again after the database went away."""
LOCK_WAIT_S: Final = 2.0
"""Longest that a batch waits for a document that somebody's open transaction holds. The lease's row
is locked meanwhile, and its heartbeat with it: never more than a quarter of a lease."""
LOCK_WAIT_ALONE_S: Final = 0.2
"""The same for each job, once they are finished one by one."""
LOCKED_AGAIN_S: Final = 10.0
"""How long a job waits that could not have its documents."""

LOCKED = Failed(
    "documents_locked",
    "another transaction holds its documents; it is tried again",
    uncounted=True,
    retry_after=LOCKED_AGAIN_S,
)


@dataclass(frozen=True, slots=True)
class Finisher:
    """Finishing transactions of one process.

    Args:
        pool: database connections.
        content: how the privacy class stores content.
        backoff_cap_s: longest wait before a retry.
        patience_s: how long to go on trying while the database is away.
        lease_s: the lease.
    """

    pool: ConnectionPool[psycopg.Connection[Any]]
    content: Content
    backoff_cap_s: float
    patience_s: float
    lease_s: float

    def finish(self, lease: Lease, outcomes: Mapping[UUID, Outcome]) -> Finished:
        """Commit what a batch came to.

        While the database is away this tries again and again: the lease cannot be taken away in that
        time, and for one lease after. Repeating is safe also when the answer to a COMMIT was lost,
        since a finish that did commit has taken the token from the jobs.

        Raises:
            psycopg.Error: the database stayed away for `patience_s`; the lease will expire.
        """
        return self._until_done(lease, outcomes, min(LOCK_WAIT_S, self.lease_s / 4))

    def _until_done(
        self, lease: Lease, outcomes: Mapping[UUID, Outcome], lock_wait_s: float
    ) -> Finished:
        give_up = time.monotonic() + self.patience_s
        while True:
            try:
                return self._once(lease, outcomes, lock_wait_s)
            except (psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled) as error:
                if len(outcomes) > 1:
                    return self._one_by_one(lease, outcomes)
                if outcomes[next(iter(outcomes))] is not LOCKED:
                    return self._until_done(lease, dict.fromkeys(outcomes, LOCKED), lock_wait_s)
                self._pause(error, give_up)
            except AWAY as error:
                self._pause(error, give_up)
            except (
                Exception
            ) as error:  # a result that cannot even be encoded is the job's own fault
                if len(outcomes) > 1:
                    return self._one_by_one(lease, outcomes)
                code = getattr(error, "sqlstate", None) or type(error).__name__
                log.error("a result cannot be stored (%s)", code)  # noqa: TRY400
                failure = Failed("not_storable", f"the database refused what came of it ({code})")
                return self._once(lease, dict.fromkeys(outcomes, failure), lock_wait_s)

    def _once(self, lease: Lease, outcomes: Mapping[UUID, Outcome], lock_wait_s: float) -> Finished:
        # A pipeline: statements whose answers nobody waits for share a round trip.
        with session(self.pool, self.lease_s) as conn, conn.pipeline():
            conn.execute(
                "SELECT set_config('lock_timeout', %s, true)",
                [str(int(lock_wait_s * 1000))],
                prepare=True,
            )
            done = finish(conn, self.content, lease, outcomes, backoff_cap_s=self.backoff_cap_s)
            conn.commit()
            return done

    def _one_by_one(self, lease: Lease, outcomes: Mapping[UUID, Outcome]) -> Finished:
        """Something of the batch cannot be stored, or not now: find out what, and store the rest."""
        done = Finished()
        for job_id, outcome in outcomes.items():
            part = self._until_done(lease, {job_id: outcome}, LOCK_WAIT_ALONE_S)
            done.states.update(part.states)
            done.failures.update(part.failures)
            done.worked.update(part.worked)
        return done

    def _pause(self, error: psycopg.Error, give_up: float) -> None:
        log.warning("finish waits for the database (%s)", type(error).__name__)
        if time.monotonic() > give_up:
            raise error
        time.sleep(RETRY_S)
