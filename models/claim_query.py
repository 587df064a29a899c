"""The one picking query: which runnable jobs come next in a lane.

Jobs are ordered by `start_tag`, their start tag in the lane's virtual time (docs/adr/0001), so one
ordered index scan is fair to owners. The dispatcher uses the query to choose hints, a worker to
claim and to top up a batch. It is flat in the backlog: it reads the index `jobs_ready` (or
`jobs_quarantined`) from a low-water mark and stops at its limit.

The mark matters when something holds an old snapshot (a dump, a caller's long transaction): claimed
rows then leave index entries that nothing may remove, and a scan from the beginning would read them
all, every time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg

FULL_SCAN_EVERY_S = 0.5
"""How long a job enqueued by a long transaction may be overlooked behind the mark."""
FULL_SCAN_SHARE = 20
"""A full scan that took d seconds is not repeated for 20 d: at most 5 % of the time goes there."""
FULL_SCAN_LATEST_S = 5.0
"""But for this long at most: a scan may also have been slow because its process stood still."""

BEGINNING = -(2**63)

PLANNER_OPTIONS = (
    "-c enable_seqscan=off -c enable_bitmapscan=off -c enable_sort=off "
    "-c plan_cache_mode=force_generic_plan"
)
"""Settings of every connection that picks. A queue's statistics are always wrong: the table was empty
when it was analysed and holds a million rows now, or the other way round. The plan must not depend on
them, so nothing but the ordered index scan is on offer where there is one. Then nothing is gained by
planning again for every call either, which Postgres would do here (a hinted claim among 100,000 jobs:
1.70 ms, and 0.93 with the plan made once)."""


def ready_jobs_sql(*, quarantined: bool = False, hints: bool = False) -> str:
    """SQL that selects `id, start_tag, cost` of up to %(limit)s jobs in line and locks them.

    Parameters of the statement: lane, kind, model (None: the kind's default), mark, limit; with
    `hints` also `rehint_s` and `age_s`: rows hinted or enqueued less than that ago are left out and
    the model is not looked at.

    Args:
        quarantined: quarantined jobs instead of the others.
        hints: for the dispatcher.
    """
    condition = (
        "(j.hinted_at IS NULL OR j.hinted_at < now.t - make_interval(secs => %(rehint_s)s))"
        " AND j.created_at <= now.t - make_interval(secs => %(age_s)s)"
        if hints
        else "coalesce(j.model, '') = coalesce(%(model)s, '')"
    )
    return f"""
      SELECT j.id, j.start_tag, j.cost
      FROM (SELECT vestry.clock() AS t OFFSET 0) now, vestry.jobs j
      WHERE j.lane = %(lane)s AND j.kind = %(kind)s AND j.state = 'queued'
        AND j.start_tag IS NOT NULL AND {"" if quarantined else "NOT "}j.quarantined
        AND j.start_tag >= %(mark)s AND {condition}
        AND (j.deadline IS NULL OR j.deadline > now.t)
        AND EXISTS (SELECT FROM vestry.lanes l WHERE l.lane = %(lane)s AND l.paused_at IS NULL)
      ORDER BY j.start_tag, j.id
      LIMIT %(limit)s
      FOR UPDATE OF j SKIP LOCKED"""  # noqa: S608 - composed of this function's own literals


_HEAD = """(
  SELECT j.id FROM (SELECT vestry.clock() AS t OFFSET 0) now, vestry.jobs j
  WHERE j.lane = l.lane AND j.kind = k.kind AND j.state = 'queued' AND j.start_tag IS NOT NULL
    AND {which} j.quarantined AND (j.deadline IS NULL OR j.deadline > now.t)
    AND EXISTS (SELECT FROM vestry.lanes p WHERE p.lane = l.lane AND p.paused_at IS NULL)
  ORDER BY j.start_tag, j.id LIMIT 1 FOR UPDATE OF j SKIP LOCKED)"""
_RUNNABLE = " UNION ALL ".join(
    "SELECT f.id FROM unnest(%(lanes)s::text[]) l(lane), unnest(%(kinds)s::text[]) k(kind), "  # noqa: S608
    f"LATERAL {_HEAD.format(which=which)} f"
    for which in ("NOT", "")
)


def runnable(
    conn: psycopg.Connection[Any], lanes: Sequence[str], kinds: Sequence[str]
) -> list[tuple[UUID]]:
    """Head of every (lane, kind) queue that is not row-locked, quarantined jobs included.

    Looked for from the very beginning, whatever any mark says.

    Args:
        conn: a connection that commits by itself.
        lanes: of these.
        kinds: of these.
    """
    return conn.execute(_RUNNABLE, {"lanes": list(lanes), "kinds": list(kinds)}).fetchall()


@dataclass(slots=True)
class LowWaterMark:
    """The low-water mark of one lane in one process. An optimisation only, never shared.

    A job enqueued after the lane's virtual time was read gets a start tag no lower than it. One
    whose transaction began earlier and commits later may be below; the regular full scan finds it.
    """

    value: int = BEGINNING
    _next: int = BEGINNING
    _full_at: float = 0.0

    def start(self) -> int:
        """Where this scan begins: usually the mark, now and then the very beginning."""
        return BEGINNING if time.monotonic() >= self._full_at else self.value

    def update(
        self, start: int, virtual_time: int | None, first: int | None, took_s: float
    ) -> None:
        """Learn from a scan.

        Args:
            start: what `start` gave.
            virtual_time: the lane's virtual time as the scan saw it, None if it did not look.
            first: the lowest start tag found, None if nothing was.
            took_s: how long the statement took, in seconds.
        """
        if start != BEGINNING:
            return
        # The mark lags one full scan behind, which forgives transactions open for that long.
        self.value = self._next
        if virtual_time is not None:
            self._next = virtual_time if first is None else min(first, virtual_time)
        pause_s = max(FULL_SCAN_EVERY_S, FULL_SCAN_SHARE * took_s)
        self._full_at = time.monotonic() + min(FULL_SCAN_LATEST_S, pause_s)
