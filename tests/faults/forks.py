"""The laboratory of forks: many forked workers, reconciler and dispatcher, killed by the hundred.

Producers, workers and control processes are forked; Postgres and Valkey are the laboratory's own. One
seed determines the jobs, the points at which processes are killed, and the faults of the servers.
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
from tests.faults.servers import JOB_CRASHED_ONCE, UNFINISHED, LabStack, ServerFaults
from tests.faults.workers import HOUR_S, LEASE_S, LabConfig, Plan, fork
from vestry import Vestry
from workers.execution.heartbeat import RESTART_EXIT_CODE

PROGRESS_S: Final = 30.0
"""After the last fault some job must end within each such period, until none is unfinished."""
LEASE_LOSING: Final = frozenset(
    {"postgres restarts", "sessions are ended", "connections run out", "the disk is full"}
)
"""Faults by which a worker may lose its lease. Each waits up to `CRASHED_JOB_WAIT_S` for jobs that
crashed once to end, and checks every `CHECK_S`."""
CRASHED_JOB_WAIT_S: Final = 3.0
CHECK_S: Final = 0.1
PRINT_S: Final = 5.0
"""Interval of progress lines."""
_PROGRESS: Final = "SELECT count(*), count(*) FILTER (WHERE finished_at IS NULL) FROM vestry.jobs"
FROZEN_S: Final = LEASE_S + 0.6
"""Longer than the lease, but too short for the worker's watchdog to end it."""
CONTROLS: Final = {
    "reconciler": failpoints.RECONCILER_POINTS,
    "dispatcher": failpoints.DISPATCHER_POINTS,
}


EVERY_POINT: Final = (
    *failpoints.POINTS, failpoints.COMMIT_ANSWER_LOST, failpoints.CLAIM_ANSWER_LOST,
    failpoints.FROZEN, *failpoints.RECONCILER_POINTS, *failpoints.DISPATCHER_POINTS,
)  # fmt: skip
POINTS_READ_S: Final = 0.5
"""Interval of reading the reached points from the history."""


@dataclass(frozen=True, slots=True)
class Scale:
    """The size of a run; counts are minimums.

    Attributes:
        jobs: enqueued.
        jobs_per_s: jobs enqueued a second, by all producers.
        kills: SIGKILLs at named points.
        zombies: workers frozen past their lease.
        required: variant of job to the number of its transactions.
        faults: fault of the servers to how often it occurs.
        workers: forked workers at a time.
        keep_jobs_s: how long finished jobs are kept.
        missing: a mechanism that is removed; None for none.
        hints_only: workers do not poll, and claim one job for each hint.
        cancels: the share of transactions whose jobs are cancelled soon after.
        progress_s: see PROGRESS_S.
        every_point: the run lasts until every named point was reached; points not reached yet are
            drawn first.
        points: the points of workers.
    """

    jobs: int
    jobs_per_s: float
    kills: int
    zombies: int
    required: dict[str, int]
    faults: dict[str, int]
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


UNEXPECTED_ERROR: Final = "a process ended by an unexpected error"


class Laboratory:
    """One run.

    Args:
        stack: its servers, running.
        seed: of all choices.
        scale: the size of the run.
        name: the laboratory's, in its report.
        faults: the faults of the servers.
    """

    def __init__(
        self,
        stack: LabStack,
        seed: int,
        scale: Scale,
        name: str = "forks",
        faults: type[ServerFaults] = ServerFaults,
    ) -> None:
        self.stack = stack
        self.seed = seed
        self.scale = scale
        self.report = Report(name, seed)
        self._rng = random.Random(seed)
        self._faults = faults(stack, self._rng)
        self._growth = Growth(stack.superuser_url, stack.home / "logs", scale.keep_jobs_s)
        home = Path(stack.keyring).parent
        self._history = History(home / "history.jsonl")
        self._stop_file = home / "stop"
        self._config = LabConfig(
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
        """Enqueue all jobs, with faults; wait until they have ended; check."""
        began = time.monotonic()
        install(self.stack.superuser_url)
        self.prepare()
        try:
            self._inject([fork(partial(self._produce, n)) for n in range(self.scale.producers)])
            self._await_end()
        finally:
            self._end_all()
        self.report.forged = self._faults.forged
        self.report.seconds = time.monotonic() - began
        lines = list(self._history.read())
        self.report.add_verdict(
            check(self.stack.superuser_url, lines, self.stack.postgres.log), lines
        )
        self.report.growth = self._growth.as_dict()
        for name in self._growth.excessive():
            self.report.violations[f"{name} grew without bound"] = [str(self.report.growth[name])]
        return self.report

    def prepare(self) -> None:
        """Called after the installation of the ledger, before any other process starts."""

    def _await_end(self) -> None:
        """Wait until every job has ended and frozen workers have resumed, while there is progress."""
        unfinished, until = -1, time.monotonic() + self.scale.progress_s
        while (unfinished != 0 or self._frozen or self._resumed) and time.monotonic() < until:
            self._step(inject=False)
            self._print_progress()
            row = self._query(UNFINISHED)
            if row is not None and row[0] != unfinished:
                unfinished, until = row[0], time.monotonic() + self.scale.progress_s

    def _produce(self, number: int) -> None:
        """Run a producer in its own process: it starts threads, and the laboratory forks."""
        # One producer's clock is an hour fast, the next one's slow.
        workers.set_clock(HOUR_S * (1 if number % 2 else -1))
        url, share = self.stack.database_url(), self.scale.producers
        order = Order(
            seed=self.seed * 1000 + number,
            jobs=-(-self.scale.jobs // share),
            jobs_per_s=self.scale.jobs_per_s / share,
            required={
                name: count // share + (number < count % share)
                for name, count in self.scale.required.items()
            },
            stop_file=self._stop_file,
            cancels=self.scale.cancels,
        )
        with Vestry(url, self.stack.keyring) as vestry:
            Producer(vestry, url, self._history, order).run()

    def _inject(self, producers: list[int]) -> None:
        """Inject faults until all jobs are enqueued and the scale's faults have occurred."""
        server_faults = self._faults
        names = [name for name, count in self.scale.faults.items() for _ in range(count)]
        self._rng.shuffle(names)
        every_s = self.scale.jobs / self.scale.jobs_per_s / (len(names) + 1)
        next_at = time.monotonic() + every_s
        name = ""
        while producers or names or server_faults.busy or not self._complete():
            producers = [pid for pid in producers if not self._ended(pid)]
            if server_faults.end_if_due():
                self._history.write("fault over", name=name)
            elif names and not server_faults.busy and self._may_begin(names[-1], next_at):
                name = names.pop()
                self._history.write("fault", name=name)
                server_faults.begin(name)
                self.report.faults[name] += 1
                if not server_faults.busy:
                    self._history.write("fault over", name=name)
                next_at = max(next_at + every_s, time.monotonic())
            if not names and self._complete():
                self._stop_file.touch()
            self._step(inject=True)
            self._print_progress()

    def _may_begin(self, name: str, next_at: float) -> bool:
        """Whether a fault may begin: it could cause the second crash of a job."""
        if name not in LEASE_LOSING:
            return time.monotonic() >= next_at
        now = time.monotonic()
        if now < max(next_at, self._checked_at + CHECK_S):
            return False
        self._checked_at = now
        row = self._query(JOB_CRASHED_ONCE)
        return row is None or not row[0] or now > next_at + CRASHED_JOB_WAIT_S

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
        """Choose a point for a new process; if every point is required, one not reached yet."""
        missing = [point for point in points if point not in self._reached]
        return self._rng.choice(missing if missing and self.scale.every_point else points)

    def _read_points(self) -> None:
        if time.monotonic() >= self._points_read_at + POINTS_READ_S:
            self._points_read_at = time.monotonic()
            self._reached = {
                line["point"] for line in self._history.read() if line["what"] == "point"
            }

    def _step(self, *, inject: bool) -> None:
        self._reap()
        if inject and self.scale.every_point:
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
                self._start(self._control_plan(role, inject=inject))
        for _ in range(self.scale.workers - sum(role not in CONTROLS for role in roles)):
            self._start(self._worker_plan(inject=inject))
        time.sleep(0.01)

    def _start(self, plan: Plan) -> None:
        body = {
            "reconciler": partial(
                control.reconcile, self._config, plan, keep_jobs_s=self.scale.keep_jobs_s
            ),
            "dispatcher": partial(control.dispatch, self._config, plan),
        }.get(plan.role, partial(workers.work, self._config, plan))
        self._children[fork(body)] = plan

    def _worker_plan(self, *, inject: bool) -> Plan:
        rng = self._rng
        point = self._draw(self.scale.points) if inject else None
        # A worker that loses the answer to every claim would run no job.
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

    def _control_plan(self, role: str, *, inject: bool) -> Plan:
        rng = self._rng
        complete = self._reached.issuperset(CONTROLS[role]) or not self.scale.every_point
        point = self._draw(CONTROLS[role]) if inject else None
        if complete and rng.random() < 1 / (len(CONTROLS[role]) + 1):
            point = None
        # Until every point was reached, a process is killed at the first pass of its point.
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
            if os.WIFEXITED(status) and os.WEXITSTATUS(status) == RESTART_EXIT_CODE:
                self._history.write("gave up", pid=pid)
            del self._children[pid]
            if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
                self.report.kills[str(plan.point)] += 1
            elif status != 0:
                self.report.deaths += 1
                if os.WIFEXITED(status) and os.WEXITSTATUS(status) == workers.UNEXPECTED_ERROR_EXIT:
                    self._history.write("violation", detail=f"{UNEXPECTED_ERROR} ({plan.role})")

    def _print_progress(self) -> None:
        """Print a line to standard error every `PRINT_S`."""
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
