"""The laboratory of forks: many cheap workers, reconciler and dispatcher, killed by the hundred.

Producers, workers and control processes are forked; Postgres and Valkey are the laboratory's own. One
seed decides what is enqueued, where processes die and which faults the servers have.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import psycopg

from models.bootstrap import CONTROL, PRIVATE_WORKER, SHAREABLE_WORKER
from tests.faults import control, failpoints, workers
from tests.faults.checker import check
from tests.faults.growth import Growth
from tests.faults.ledger import History, install
from tests.faults.producers import Order, Producer
from tests.faults.report import Report
from tests.faults.servers import DELICATE, LabStack, Mishaps
from tests.faults.workers import HOUR_S, LEASE_S, Plan, Site, fork
from vestry import Vestry
from workers.execution.heartbeat import OVERRUN_EXIT_CODE

PROGRESS_S: Final = 30.0
"""After the last fault some job must end within each such period, until none is unfinished."""
COSTLY: Final = frozenset(
    {"postgres restarts", "sessions are ended", "connections run out", "the disk is full"}
)
"""Faults that may cost a worker its lease. One waits up to `CALM_S` for jobs that crashed once to end;
it checks every `CHECK_S`."""
CALM_S: Final = 3.0
CHECK_S: Final = 0.1
PRINT_S: Final = 5.0
"""Interval of progress lines."""
_UNFINISHED: Final = "SELECT count(*) FROM vestry.jobs WHERE finished_at IS NULL"
_PROGRESS: Final = "SELECT count(*), count(*) FILTER (WHERE finished_at IS NULL) FROM vestry.jobs"
FROZEN_S: Final = LEASE_S + 0.6
"""Longer than the lease, and too short for the worker's watchdog to end it."""
CONTROLS: Final = {
    "reconciler": failpoints.RECONCILER_POINTS,
    "dispatcher": failpoints.DISPATCHER_POINTS,
}


EVERY_POINT: Final = (
    *failpoints.POINTS, failpoints.COMMIT_ANSWER_LOST, failpoints.CLAIM_ANSWER_LOST,
    failpoints.FROZEN, *failpoints.RECONCILER_POINTS, *failpoints.DISPATCHER_POINTS,
)  # fmt: skip
POINTS_READ_S: Final = 0.5
"""How often the history is read for the points that were reached."""


@dataclass(frozen=True, slots=True)
class Scale:
    """The size of a run; counts are minimums.

    Attributes:
        jobs: enqueued.
        a_second: jobs enqueued a second, by all producers.
        kills: SIGKILLs at named points.
        zombies: workers frozen past their lease.
        certain: variant of job to the number of its transactions.
        mishaps: fault of the servers to how often it occurs.
        workers: forked workers at a time.
        keep_jobs_s: how long finished jobs are kept.
        missing: a mechanism that is removed; None for none.
        hints_only: workers do not poll, and claim one job for each hint.
        cancels: the share of transactions that are cancelled soon after.
        progress_s: see PROGRESS_S.
        every_point: the run lasts until every named point was reached; points not reached yet are
            drawn first.
        points: the points of workers.
    """

    jobs: int
    a_second: float
    kills: int
    zombies: int
    certain: dict[str, int]
    mishaps: dict[str, int]
    workers: int = 4
    producers: int = 2
    keep_jobs_s: float = 3600.0
    missing: str | None = None
    hints_only: bool = False
    progress_s: float = PROGRESS_S
    cancels: float = 0.03
    every_point: bool = False
    points: tuple[str, ...] = (
        *failpoints.POINTS,
        failpoints.COMMIT_ANSWER_LOST,
        failpoints.CLAIM_ANSWER_LOST,
        failpoints.FROZEN,
    )


BUG: Final = "a process ended by an error of its own"


class Laboratory:
    """One run.

    Args:
        stack: its servers, running.
        seed: of all choices.
        scale: the size of the run.
        name: the laboratory's, in its report.
        mishaps: the faults of the servers.
    """

    def __init__(
        self,
        stack: LabStack,
        seed: int,
        scale: Scale,
        name: str = "forks",
        mishaps: type[Mishaps] = Mishaps,
    ) -> None:
        self.stack = stack
        self.seed = seed
        self.scale = scale
        self.report = Report(name, seed)
        self._rng = random.Random(seed)
        self._mishaps = mishaps(stack, self._rng)
        self._growth = Growth(stack.superuser_url, stack.home / "logs", scale.keep_jobs_s)
        home = Path(stack.keyring).parent
        self._history = History(home / "history.jsonl")
        self._enough = home / "enough"
        self._site = Site(
            url={
                "private": stack.database_url(PRIVATE_WORKER),
                "shareable": stack.database_url(SHAREABLE_WORKER),
            },
            broker={name: stack.broker_url(name) for name in ("private", "shareable")},
            control_url=stack.database_url(CONTROL),
            dispatcher_url=stack.broker_url("dispatcher"),
            keyring=Path(stack.keyring),
            history=home / "history.jsonl",
        )
        self._children: dict[int, Plan] = {}
        self._frozen: dict[int, float] = {}
        self._resumed: set[int] = set()
        self._printed_at = 0.0
        self._checked_at = 0.0
        self._reached: set[str] = set()
        self._points_read_at = 0.0

    def run(self) -> Report:
        """Enqueue all, with faults; let everything end; check."""
        began = time.monotonic()
        install(self.stack.superuser_url)
        self.prepare()
        try:
            self._inject([fork(partial(self._produce, n)) for n in range(self.scale.producers)])
            self._let_end()
        finally:
            self._end_all()
        self.report.forged = self._mishaps.forged
        self.report.seconds = time.monotonic() - began
        lines = list(self._history.read())
        self.report.take(check(self.stack.superuser_url, lines, self.stack.postgres.log), lines)
        self.report.grown = self._growth.document()
        for name in self._growth.excessive():
            self.report.violations[f"{name} grew without bound"] = [str(self.report.grown[name])]
        return self.report

    def prepare(self) -> None:
        """Called once the ledger is installed, before any other process starts."""

    def _let_end(self) -> None:
        """Wait until every job has ended, or none does any more, and frozen workers have resumed."""
        unfinished, until = -1, time.monotonic() + self.scale.progress_s
        while (unfinished != 0 or self._frozen or self._resumed) and time.monotonic() < until:
            self._step(faults=False)
            self._print_progress()
            row = self._query(_UNFINISHED)
            if row is not None and row[0] != unfinished:
                unfinished, until = row[0], time.monotonic() + self.scale.progress_s

    def _produce(self, number: int) -> None:
        """Run a producer, in a process of its own: it has threads, and then a process must not fork."""
        # One producer's clock is an hour fast, the next one's slow.
        workers.set_clock(HOUR_S * (1 if number % 2 else -1))
        url, share = self.stack.database_url(), self.scale.producers
        order = Order(
            seed=self.seed * 1000 + number,
            jobs=-(-self.scale.jobs // share),
            a_second=self.scale.a_second / share,
            certain={
                name: count // share + (number < count % share)
                for name, count in self.scale.certain.items()
            },
            enough=self._enough,
            cancels=self.scale.cancels,
        )
        with Vestry(url, self.stack.keyring) as vestry:
            Producer(vestry, url, self._history, order).run()

    def _inject(self, producers: list[int]) -> None:
        """Inject faults until all is enqueued and there were enough faults."""
        mishaps = self._mishaps
        names = [name for name, count in self.scale.mishaps.items() for _ in range(count)]
        self._rng.shuffle(names)
        every_s = self.scale.jobs / self.scale.a_second / (len(names) + 1)
        next_at = time.monotonic() + every_s
        name = ""
        while producers or names or mishaps.busy or not self._complete():
            producers = [pid for pid in producers if not self._ended(pid)]
            if mishaps.end_if_due():
                self._history.write("mishap over", name=name)
            elif names and not mishaps.busy and self._due(names[-1], next_at):
                name = names.pop()
                self._history.write("mishap", name=name)
                mishaps.begin(name)
                self.report.mishaps[name] += 1
                if not mishaps.busy:
                    self._history.write("mishap over", name=name)
                next_at = max(next_at + every_s, time.monotonic())
            if not names and self._complete():
                self._enough.touch()
            self._step(faults=True)
            self._print_progress()

    def _due(self, name: str, next_at: float) -> bool:
        """Whether a fault may begin: it could be the second crash of a job that crashed once."""
        if name not in COSTLY:
            return time.monotonic() >= next_at
        now = time.monotonic()
        if now < max(next_at, self._checked_at + CHECK_S):
            return False
        self._checked_at = now
        row = self._query(DELICATE)
        return row is None or not row[0] or now > next_at + CALM_S

    def _ended(self, producer: int) -> bool:
        ended, status = os.waitpid(producer, os.WNOHANG)
        if ended and status != 0:
            raise RuntimeError("a producer failed")
        return bool(ended)

    def _complete(self) -> bool:
        return (
            sum(self.report.kills.values()) >= self.scale.kills
            and self.report.zombies >= self.scale.zombies
            and not self._frozen
            and (not self.scale.every_point or set(EVERY_POINT) <= self._reached)
        )

    def _draw(self, points: Sequence[str]) -> str:
        """A point for a new process; where every point must be reached, one that was not yet."""
        missing = [point for point in points if point not in self._reached]
        return self._rng.choice(missing if missing and self.scale.every_point else points)

    def _read_points(self) -> None:
        if time.monotonic() >= self._points_read_at + POINTS_READ_S:
            self._points_read_at = time.monotonic()
            self._reached = {
                line["point"] for line in self._history.read() if line["what"] == "point"
            }

    def _step(self, *, faults: bool) -> None:
        self._reap()
        if faults and self.scale.every_point:
            self._read_points()
        for pid, until in list(self._frozen.items()):
            if time.monotonic() >= until:
                self._history.write("resumed", pid=pid)
                os.kill(pid, signal.SIGCONT)
                del self._frozen[pid]
                self._resumed.add(pid)
        roles = [plan.role for pid, plan in self._children.items() if pid not in self._frozen]
        for role in CONTROLS.keys() - set(roles):
            if role != self.scale.missing:
                self._start(self._control_plan(role, faults=faults))
        for _ in range(self.scale.workers - sum(role not in CONTROLS for role in roles)):
            self._start(self._worker_plan(faults=faults))
        time.sleep(0.01)

    def _start(self, plan: Plan) -> None:
        body = {
            "reconciler": partial(
                control.reconcile, self._site, plan, keep_jobs_s=self.scale.keep_jobs_s
            ),
            "dispatcher": partial(control.dispatch, self._site, plan),
        }.get(plan.role, partial(workers.work, self._site, plan))
        self._children[fork(body)] = plan

    def _worker_plan(self, *, faults: bool) -> Plan:
        rng = self._rng
        point = self._draw(self.scale.points) if faults else None
        # A worker that loses every claim's answer would do nothing.
        first, last = {
            failpoints.FROZEN: (1, 1),
            failpoints.INSIDE_FINISH_DEAD: (1, 1),
            failpoints.CLAIM_ANSWER_LOST: (2, 4),
        }.get(str(point), (1, 4))
        return Plan(
            role=rng.choice(("private", "shareable")),
            seed=rng.randrange(2**32),
            point=point,
            nth=rng.randint(first, last),
            skew_s=rng.choice((0.0, 0.0, HOUR_S, -HOUR_S)),
            mutation=self.scale.missing,
            hints_only=self.scale.hints_only,
        )

    def _control_plan(self, role: str, *, faults: bool) -> Plan:
        rng = self._rng
        complete = self._reached.issuperset(CONTROLS[role]) or not self.scale.every_point
        point = self._draw(CONTROLS[role]) if faults else None
        if complete and rng.random() < 1 / (len(CONTROLS[role]) + 1):
            point = None
        # Until every point was reached, a process dies at the first pass of its point.
        nth = rng.randint(1, 5 if complete else 1)
        skew_s = rng.choice((0.0, HOUR_S, -HOUR_S))
        return Plan(role, 0, point, nth, skew_s, self.scale.missing)

    def _reap(self) -> None:
        for child, plan in list(self._children.items()):
            pid, status = os.waitpid(child, os.WNOHANG | os.WUNTRACED)
            if pid == 0:
                continue
            if os.WIFSTOPPED(status):
                self.report.zombies += 1
                self._frozen[pid] = time.monotonic() + FROZEN_S
                continue
            self._frozen.pop(pid, None)
            self._resumed.discard(pid)
            if os.WIFEXITED(status) and os.WEXITSTATUS(status) == OVERRUN_EXIT_CODE:
                self._history.write("gave up", pid=pid)
            del self._children[pid]
            if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
                self.report.kills[str(plan.point)] += 1
            elif status != 0:
                self.report.deaths += 1
                if os.WIFEXITED(status) and os.WEXITSTATUS(status) == workers.RAISED:
                    self._history.write("violation", detail=f"{BUG} ({plan.role})")

    def _print_progress(self) -> None:
        """Print a line to standard error from time to time."""
        if time.monotonic() < self._printed_at + PRINT_S:
            return
        self._printed_at = time.monotonic()
        self._growth.sample(self._children)
        row = self._query(_PROGRESS) or ("?", "?")
        kills, zombies = sum(self.report.kills.values()), self.report.zombies
        progress = f"{row[0]} jobs, {row[1]} unfinished; {kills} kills, {zombies} zombies"
        print(f"{self.report.name}: {progress}", file=sys.stderr, flush=True)

    def _query(self, query: str) -> Any:
        """One row; None while the database is unavailable."""
        try:
            with psycopg.connect(
                self.stack.superuser_url, autocommit=True, connect_timeout=2
            ) as conn:
                return conn.execute(query.encode()).fetchone()
        except psycopg.Error:
            return None

    def _end_all(self) -> None:
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)
            os.kill(pid, signal.SIGCONT)
            os.waitpid(pid, 0)
        self._children.clear()
