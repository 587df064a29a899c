"""`python -m tests.faults`: enqueue, kill, check. One seed decides every choice that is made here.

What the processes do between two choices is up to the machine: a seed repeats the faults and the load,
not the interleaving.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import secrets
import signal
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from statistics import quantiles
from typing import Any

import psycopg

from models.roles import CONTROL, PRIVATE_WORKER, SHAREABLE_WORKER
from tests.faults import workers
from tests.faults.checker import Verdict, check
from tests.faults.ledger import History, install
from tests.faults.producers import Producer
from tests.faults.workers import LEASE_S, Plan, Site
from tests.homes import temporary_home
from vestry import Vestry
from workers.devstack import DevStack

PATIENCE_S = 120.0
"""After the last fault everything must have ended within this."""


TELL_S = 5.0
"""How often a line is written of how far it is."""


@dataclass(slots=True)
class Report:
    """What one run did and saw."""

    seed: int
    kills: Counter[str] = field(default_factory=Counter)
    zombies: int = 0
    restarts: int = 0
    seconds: float = 0.0
    recovery_s: list[float] = field(default_factory=list)
    seen: dict[str, int] = field(default_factory=dict)
    violations: dict[str, list[str]] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """As JSON."""
        told = asdict(self)
        times = told.pop("recovery_s")
        if len(times) > 1:
            cuts = quantiles(times, n=100, method="inclusive")
            told["recovery"] = {"count": len(times), "p50_s": cuts[49], "p99_s": cuts[98]}
        told["kills"] = {"all": sum(self.kills.values()), **self.kills}
        return told


class Laboratory:
    """Forked workers and reconciler beside one producer, all steered by one seed."""

    def __init__(self, stack: DevStack, options: argparse.Namespace) -> None:
        self._stack = stack
        self._options = options
        self._rng = random.Random(options.seed)
        self._report = Report(options.seed)
        self._history = History(Path(stack.keyring).parent / "history.jsonl")
        self._site = Site(
            url={
                "private": stack.database_url(PRIVATE_WORKER),
                "shareable": stack.database_url(SHAREABLE_WORKER),
            },
            control_url=stack.database_url(CONTROL),
            keyring=Path(stack.keyring),
            history=Path(stack.keyring).parent / "history.jsonl",
        )
        self._children: dict[int, Plan] = {}
        self._frozen: dict[int, float] = {}
        self._reconciler: tuple[int, Plan] | None = None
        self._enough = Path(stack.keyring).parent / "enough"
        self._told_at = 0.0
        self._produced = False

    def run(self) -> Report:
        """Enqueue all, with faults; then let everything end; then check."""
        began = time.monotonic()
        install(self._stack.superuser_url)
        producer = workers.fork(self._produce)
        with psycopg.connect(self._stack.superuser_url, autocommit=True) as conn:
            while self._producing(producer) or not self._over():
                if self._over():
                    self._enough.touch()
                self._step(faults=True)
                self._tell(conn)
            until = time.monotonic() + PATIENCE_S
            while not self._ended(conn) and time.monotonic() < until:
                self._step(faults=False)
                self._tell(conn)
        self._end_all()
        self._report.seconds = time.monotonic() - began
        self._check()
        return self._report

    def _produce(self) -> None:
        """In a process of its own: a client has threads, and a process with threads must not fork."""
        url = self._stack.database_url()
        with (
            Vestry(url, self._stack.keyring) as vestry,
            psycopg.connect(url, autocommit=True) as conn,
        ):
            producer = Producer(vestry, conn, self._history, random.Random(self._options.seed))
            producer.produce(
                self._options.jobs, self._options.hangs, self._options.a_second, self._enough
            )

    def _producing(self, pid: int) -> bool:
        if self._produced:
            return False
        found, status = os.waitpid(pid, os.WNOHANG)
        if found and status != 0:
            raise RuntimeError("the producer failed")
        self._produced = bool(found)
        return not self._produced

    def _over(self) -> bool:
        return (
            sum(self._report.kills.values()) >= self._options.kills
            and self._report.zombies >= self._options.zombies
            and not self._frozen
        )

    def _step(self, *, faults: bool) -> None:
        self._bury()
        for pid, until in list(self._frozen.items()):
            if time.monotonic() >= until:
                os.kill(pid, signal.SIGCONT)
                del self._frozen[pid]
        while len(self._children) - len(self._frozen) < self._options.workers:
            plan = self._plan(faults=faults)
            self._children[workers.fork(partial(workers.work, self._site, plan))] = plan
        if self._reconciler is None:
            point = self._rng.choice((*workers.RECONCILER_POINTS, None, None)) if faults else None
            plan = Plan("control", 0, point, self._rng.randint(1, 3))
            self._reconciler = workers.fork(partial(workers.reconcile, self._site, plan)), plan
        time.sleep(0.01)

    def _plan(self, *, faults: bool) -> Plan:
        rng = self._rng
        point = None
        if faults:
            point = rng.choice((*workers.POINTS, *workers.POINTS, workers.CUT, workers.FREEZE))
        nth = rng.randint(1, 4) if point != workers.FREEZE else 1
        return Plan(rng.choice(("private", "shareable")), rng.randrange(2**32), point, nth)

    def _bury(self) -> None:
        ours = [*self._children, *([self._reconciler[0]] if self._reconciler else [])]
        for child in ours:
            pid, status = os.waitpid(child, os.WNOHANG | os.WUNTRACED)
            if pid == 0:
                continue
            if os.WIFSTOPPED(status):
                self._report.zombies += 1
                self._frozen[pid] = time.monotonic() + LEASE_S + 1.0
                continue
            self._frozen.pop(pid, None)
            if self._reconciler is not None and pid == self._reconciler[0]:
                plan, self._reconciler = self._reconciler[1], None
            else:
                plan = self._children.pop(pid)
            if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
                self._report.kills[str(plan.point)] += 1

    def _tell(self, conn: psycopg.Connection[Any]) -> None:
        """A line on standard error now and then."""
        if time.monotonic() < self._told_at + TELL_S:
            return
        self._told_at = time.monotonic()
        row = conn.execute(
            "SELECT count(*), count(*) FILTER (WHERE finished_at IS NULL) FROM vestry.jobs"
        ).fetchone()
        assert row is not None
        print(
            f"{row[0]} jobs, {row[1]} to go; {sum(self._report.kills.values())} kills, "
            f"{self._report.zombies} zombies",
            file=sys.stderr,
            flush=True,
        )

    def _ended(self, conn: psycopg.Connection[Any]) -> bool:
        row = conn.execute(
            "SELECT EXISTS (SELECT FROM vestry.jobs WHERE finished_at IS NULL)"
        ).fetchone()
        return row is not None and not row[0]

    def _end_all(self) -> None:
        for pid in [*self._children, *([self._reconciler[0]] if self._reconciler else [])]:
            os.kill(pid, signal.SIGKILL)
            os.kill(pid, signal.SIGCONT)
            os.waitpid(pid, 0)
        self._children.clear()

    def _check(self) -> None:
        lines = list(self._history.read())
        verdict: Verdict = check(self._stack.superuser_url, lines)
        for line in lines:
            if line["what"] == "violation":
                verdict.blame(line["told"], "")
            verdict.counts[f"history: {line['what']}"] += 1
        self._report.seen = dict(sorted(verdict.counts.items()))
        self._report.violations = {
            kind: [f"{len(found)} lines", *found[:5]] for kind, found in verdict.violations.items()
        }
        with psycopg.connect(self._stack.superuser_url, autocommit=True) as conn:
            # From the moment a lease was lost (its worker's last sign of life may be a lease before)
            # to the moment its jobs stood in line again, as the ledger saw both.
            rows = conn.execute(
                """SELECT extract(epoch FROM back.at - token.at)::float8
                   FROM ledger.events back JOIN ledger.events token
                     ON token.what = 'token' AND token.token = back.token
                   WHERE back.what = 'moved' AND back.told = 'running>queued'
                     AND EXISTS (SELECT FROM vestry.receipts r WHERE r.lease_id = back.token
                                   AND r.outcome IN ('lost', 'refused'))"""
            ).fetchall()
        self._report.recovery_s = [row[0] for row in rows]


def main() -> int:
    """Run once; prints the report as JSON. 0 if nothing was lost and nothing done twice."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31))
    parser.add_argument("--jobs", type=int, default=5000)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--zombies", type=int, default=20)
    parser.add_argument("--hangs", type=int, default=2)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--a-second", type=float, default=100.0, help="jobs enqueued a second")
    options = parser.parse_args()
    print(f"seed {options.seed}", file=sys.stderr, flush=True)
    with temporary_home("vestry-faults-") as home, DevStack(home) as stack:
        report = Laboratory(stack, options).run()
    print(json.dumps(report.document(), indent=1, default=str))
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
