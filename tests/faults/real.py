"""The laboratory of the real stack: `vestry up` with Celery workers, and faults in each process.

Real workers, dispatcher, reconciler and supervisor are killed, frozen and disconnected from database
and broker by proxies; the servers are restarted, emptied and stopped. Instantaneous and lasting faults
occur at the same time, chosen by one seed.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg

from tests import faulty_echo
from tests.faults import stack_faults
from tests.faults.checker import check
from tests.faults.child_kills import kill_each_child
from tests.faults.growth import Growth
from tests.faults.job_mix import KINDS, PAGE
from tests.faults.lab_up import LabUp
from tests.faults.ledger import History, install
from tests.faults.producers import OWNERS, PRIVACIES, Order, Producer
from tests.faults.proxy import Proxy
from tests.faults.report import Report
from tests.faults.servers import JOB_CRASHED_ONCE, UNFINISHED
from tests.faults.stack_faults import LastingFault, StackUnderTest
from vestry import Embedding, Ocr, Vestry

SETTINGS: Final = {
    "VESTRY_EMBEDDING_BACKEND": faulty_echo.RUNTIME,
    "VESTRY_LLAMA": "off",
    "VESTRY_LEASE_S": "2",
    "VESTRY_HEARTBEAT_S": "0.5",
    "VESTRY_MAX_RUN_S": "6",
    "VESTRY_BATCH_S": "0.5",
    "VESTRY_BACKOFF_CAP_S": "0.2",
    "VESTRY_STALL_TIMEOUT_S": "8",
}
PROGRESS_S: Final = 40.0
"""After the last fault some job must end within each such period, until none is unfinished."""
PRINT_S: Final = 5.0
OTHER_FAULTS: Final = "others"
SETTLED_S: Final = 20.0
"""After the last fault a job of every lane finishes within this time: no process is idle."""
LEASES_KEPT: Final = frozenset(
    {
        "the broker is emptied",
        "the broker is cut off",
        "the broker is half open",
        "the broker flaps",
        "the broker hangs",
        "messages are forged",
        "a snapshot is held",
    }
)
"""Faults by which no worker loses its lease; others wait until no unfinished job has crashed once."""
CRASHED_JOB_WAIT_S: Final = 15.0
"""How long a fault waits for jobs that crashed once to end; then it is postponed."""


@dataclass(frozen=True, slots=True)
class Scale:
    """The size of a run; the names of faults are those of `stack_faults`."""

    jobs: int
    jobs_per_s: float
    required: dict[str, int]
    instant: dict[str, int]
    lasting: dict[str, int]
    longest_s: dict[str, float]
    """Longest duration of each lasting fault; `OTHER_FAULTS` for those that are not named."""
    keep_jobs_s: float = 3600.0


class Laboratory:
    """One run.

    Args:
        path: the stack's home, empty.
        seed: of all choices.
        scale: the size of the run.
    """

    def __init__(self, path: Path, seed: int, scale: Scale) -> None:
        self._seed = seed
        self._scale = scale
        self._rng = random.Random(seed)
        self.report = Report("real", seed)
        settings = SETTINGS | {"VESTRY_KEEP_JOBS_S": str(scale.keep_jobs_s)}
        self._up = LabUp(path, settings)
        self._history = History(path / "history.jsonl")
        self._children_killed = path / "children killed"
        self._stop_file = path / "stop"
        self._printed_at = 0.0
        self._failures: list[BaseException] = []

    def run(self) -> Report:
        """Start the stack, enqueue with faults, let everything end, check."""
        began = time.monotonic()
        with Proxy(self._up.postgres_port) as database, Proxy(self._up.broker_port) as broker:
            self._stack = StackUnderTest(self._up, database, broker, self._history, self._rng)
            try:
                self._stack.start()
                install(self._up.superuser_url)
                logs, keep_s = self._up.home.logs, self._scale.keep_jobs_s
                self._growth = Growth(self._up.superuser_url, logs, keep_s)
                self._run()
            finally:
                self._up.stop()
        self.report.seconds = time.monotonic() - began
        return self.report

    def _run(self) -> None:
        # Read once: a killed supervisor leaves no client file.
        client = self._up.client
        try:
            # Without poison: the end of a child other than the killed one is then a violation.
            harmless = {kind.name: self._scale.required.get(kind.name, 0) for kind in KINDS}
            producers = self._start_producers(client, 500, 0, harmless, self._children_killed)
            kill_each_child(self._stack, self._rng, self.report, self._await_crashed_jobs)
            self._children_killed.touch()
            for producer in producers:
                producer.join()
            self._inject(
                self._start_producers(
                    client, 600, self._scale.jobs, self._scale.required, self._stop_file
                )
            )
        finally:
            self._children_killed.touch()
            self._stop_file.touch()
            self._stack.restore()
        unfinished, until = -1, time.monotonic() + PROGRESS_S
        while unfinished != 0 and time.monotonic() < until:
            self._print_progress()
            time.sleep(0.2)
            count = self._query(UNFINISHED, default=unfinished)
            if count != unfinished:
                unfinished, until = count, time.monotonic() + PROGRESS_S
        if self._failures:
            raise self._failures[0]
        self._check_settled(client)
        lines = list(self._history.read())
        log = self._up.home.logs / "postgres.log"
        self.report.add_verdict(check(self._up.superuser_url, lines, log), lines)
        self.report.growth = self._growth.as_dict()
        for name in self._growth.excessive():
            self.report.violations[f"{name} grew without bound"] = [str(self.report.growth[name])]

    def _start_producers(
        self,
        client: dict[str, Any],
        seed: int,
        jobs: int,
        required: dict[str, int],
        stop_file: Path,
    ) -> list[threading.Thread]:
        """Start two threads that share the jobs and the required transactions."""
        producers = [
            threading.Thread(
                target=self._produce,
                args=(
                    client,
                    Order(
                        seed=self._seed * 1000 + seed + number,
                        jobs=-(-jobs // 2),
                        jobs_per_s=self._scale.jobs_per_s / 2,
                        required={
                            name: count // 2 + (number < count % 2)
                            for name, count in required.items()
                        },
                        stop_file=stop_file,
                        kinds=True,
                    ),
                ),
                name=f"producer-{number}",
            )
            for number in range(2)
        ]
        for producer in producers:
            producer.start()
        return producers

    def _produce(self, client: dict[str, Any], order: Order) -> None:
        try:
            with Vestry(client["database_url"], client["keyring"]) as vestry:
                Producer(vestry, client["database_url"], self._history, order).run()
        except BaseException as error:
            self._failures.append(error)

    def _inject(self, producers: list[threading.Thread]) -> None:
        instant = self._shuffled(self._scale.instant)
        lasting = self._shuffled(self._scale.lasting)
        length_s = self._scale.jobs / self._scale.jobs_per_s
        every_s = length_s / (len(instant) + 1)
        lasts_s = sum(map(self._longest_s, lasting)) / 2
        pause_s = max(1.0, (length_s - lasts_s) / (len(lasting) + 1))
        now = time.monotonic()
        next_instant, next_lasting = now + every_s, now + pause_s
        active: LastingFault | None = None
        while instant or lasting or active or any(p.is_alive() for p in producers):
            if self._failures:
                return
            now = time.monotonic()
            if active is not None and now >= active.until:
                active.end()
                self._history.write("fault over", name=active.name)
                active, next_lasting = None, now + pause_s
            elif (
                active is None and lasting and now >= next_lasting and self._may_begin(lasting[-1])
            ):
                active = self._begin_lasting(lasting.pop())
            if instant and now >= next_instant and self._may_begin(instant[-1]):
                name = instant.pop()
                # A new supervisor waits for readiness, which a lasting fault may prevent.
                exclusive = name == stack_faults.SUPERVISOR
                if (exclusive and active is not None) or not self._inject_instant(name):
                    instant.insert(0, name)
                next_instant = max(next_instant + every_s, now)
            if not instant and not lasting and active is None:
                self._stop_file.touch()
            self._print_progress()
            time.sleep(0.05)

    def _shuffled(self, counts: dict[str, int]) -> list[str]:
        names = [name for name, count in counts.items() for _ in range(count)]
        self._rng.shuffle(names)
        return names

    def _begin_lasting(self, name: str) -> LastingFault | None:
        seconds = self._rng.uniform(0.3, 1.0) * self._longest_s(name)
        self._history.write("fault", name=name)
        active = stack_faults.LASTING[name](self._stack, seconds)
        self.report.faults[name] += 1
        return active

    def _longest_s(self, name: str) -> float:
        return self._scale.longest_s.get(name, self._scale.longest_s[OTHER_FAULTS])

    def _inject_instant(self, name: str) -> bool:
        """Inject a fault; False if it did not occur: a process that is restarting cannot be killed."""
        self._history.write("fault", name=name)
        injected = stack_faults.INSTANT[name](self._stack)
        if injected:
            self.report.faults[name] += 1
            if name in stack_faults.KILLS:
                self.report.kills[name] += 1
        self._history.write("fault over", name=name)
        self.report.forged = self._stack.forged
        return injected

    def _may_begin(self, fault: str) -> bool:
        return fault in LEASES_KEPT or self._await_crashed_jobs()

    def _await_crashed_jobs(self) -> bool:
        """Wait until no unfinished job has crashed once in an exclusive run; False after a timeout.

        Two such crashes make a job dead, by design. Faults hit each job once at most, so a dead
        harmless job is always the system's error.
        """
        return stack_faults.wait_for(lambda: not self._query(JOB_CRASHED_ONCE), CRASHED_JOB_WAIT_S)

    def _check_settled(self, client: dict[str, Any]) -> None:
        """Check that every process runs, holds its locks and finishes a job: none is alive but idle."""
        began = time.monotonic()
        if not stack_faults.wait_for(self._up.all_ready, SETTLED_S):
            self.report.violations["a process was not ready again"] = [str(self._up.processes())]
        with (
            Vestry(client["database_url"], client["keyring"]) as vestry,
            psycopg.connect(client["database_url"], autocommit=True) as conn,
        ):
            jobs = [
                vestry.enqueue(conn, job, owner=OWNERS[0], privacy=privacy, latency=latency)
                for privacy in PRIVACIES
                for latency in ("interactive", "bulk")
                for job in (Embedding(texts=["the last"]), Ocr(PAGE))
            ]
            ids = [str(job.id) for job in jobs]
            self._history.write("committed", jobs=ids, variant="last", ends=["succeeded"])
            idle = [
                vestry.status(job).lane
                for job in jobs
                if not stack_faults.wait_for(
                    lambda job=job: vestry.status(job).finished,  # type: ignore[misc]
                    SETTLED_S,
                )
            ]
        if idle:
            self.report.violations["a worker is alive but idle"] = idle
        locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted"
        if not stack_faults.wait_for(
            lambda: self._query(locks) >= 1 + len(PRIVACIES) * 4, SETTLED_S
        ):
            self.report.violations["a dispatcher or reconciler is alive but idle"] = [""]
        self.report.seen["settled after ms"] = int(1000 * (time.monotonic() - began))

    def _query(self, query: str, default: Any = True) -> Any:
        try:
            with psycopg.connect(
                self._up.superuser_url, autocommit=True, connect_timeout=2
            ) as conn:
                row = conn.execute(query.encode()).fetchone()
        except psycopg.Error:
            return default
        return default if row is None else row[0]

    def _print_progress(self) -> None:
        if time.monotonic() < self._printed_at + PRINT_S:
            return
        self._printed_at = time.monotonic()
        self._growth.sample(p["pid"] for p in self._up.processes() if p["pid"])
        jobs = self._query("SELECT count(*) FROM vestry.jobs", "?")
        unfinished = self._query(UNFINISHED, "?")
        print(
            f"real: {jobs} jobs, {unfinished} unfinished; {sum(self.report.faults.values())} faults",
            file=sys.stderr,
            flush=True,
        )
