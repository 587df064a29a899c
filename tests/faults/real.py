"""The laboratory of the real stack: `vestry up` with Celery workers, a fault in each of its parts.

Real workers, dispatcher, reconciler and supervisor are killed, frozen and cut off from database and
broker by proxies; the servers are restarted, emptied and stopped. Some faults are instantaneous, others
last; both occur side by side, by one seed.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg

from tests import faulty_echo
from tests.faults import strikes
from tests.faults.checker import check
from tests.faults.child_kills import kill_each_child
from tests.faults.growth import Growth
from tests.faults.job_mix import KINDS, PAGE
from tests.faults.lab_up import LabUp
from tests.faults.ledger import History, install
from tests.faults.producers import OWNERS, PRIVACIES, Order, Producer
from tests.faults.proxy import Proxy
from tests.faults.report import Report
from tests.faults.servers import DELICATE
from tests.faults.strikes import Lasting, Site
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
OTHERS: Final = "others"
SETTLED_S: Final = 20.0
"""Once all faults are over, a job of every lane is done within this time: no process is idle."""
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
"""Faults that cost no worker its lease; the others wait until no job is about that crashed once."""
CALM_S: Final = 15.0
"""How long a fault waits for jobs that crashed once to end; then it is tried later."""
_UNFINISHED: Final = "SELECT count(*) FROM vestry.jobs WHERE finished_at IS NULL"


@dataclass(frozen=True, slots=True)
class Scale:
    """The size of a run; the names of faults are those of `strikes`."""

    jobs: int
    a_second: float
    certain: dict[str, int]
    at_once: dict[str, int]
    lasting: dict[str, int]
    longest_s: dict[str, float]
    """Longest duration of each lasting fault; `OTHERS` for those that are not named."""
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
        self._enough = path / "enough"
        self._printed_at = 0.0
        self._failures: list[BaseException] = []

    def run(self) -> Report:
        """Start the stack, enqueue with faults, let everything end, check."""
        began = time.monotonic()
        with Proxy(self._up.postgres_port) as database, Proxy(self._up.broker_port) as broker:
            self._site = Site(self._up, database, broker, self._history, self._rng)
            try:
                self._site.start()
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
            # Without poison: a child that dies beside the one that is killed is then a violation.
            harmless = {kind.name: self._scale.certain.get(kind.name, 0) for kind in KINDS}
            producers = self._start_producers(client, 500, 0, harmless, self._children_killed)
            kill_each_child(self._site, self._rng, self.report, self._calm)
            self._children_killed.touch()
            for producer in producers:
                producer.join()
            self._inject(
                self._start_producers(
                    client, 600, self._scale.jobs, self._scale.certain, self._enough
                )
            )
        finally:
            self._children_killed.touch()
            self._enough.touch()
            self._site.restore()
        unfinished, until = -1, time.monotonic() + PROGRESS_S
        while unfinished != 0 and time.monotonic() < until:
            self._print_progress()
            time.sleep(0.2)
            now_unfinished = self._query(_UNFINISHED, default=unfinished)
            if now_unfinished != unfinished:
                unfinished, until = now_unfinished, time.monotonic() + PROGRESS_S
        if self._failures:
            raise self._failures[0]
        self._check_settled(client)
        lines = list(self._history.read())
        log = self._up.home.logs / "postgres.log"
        self.report.take(check(self._up.superuser_url, lines, log), lines)
        self.report.grown = self._growth.document()
        for name in self._growth.excessive():
            self.report.violations[f"{name} grew without bound"] = [str(self.report.grown[name])]

    def _start_producers(
        self, client: dict[str, Any], seed: int, jobs: int, certain: dict[str, int], enough: Path
    ) -> list[threading.Thread]:
        """Two threads that share jobs and certain transactions."""
        producers = [
            threading.Thread(
                target=self._produce,
                args=(
                    client,
                    Order(
                        seed=self._seed * 1000 + seed + number,
                        jobs=-(-jobs // 2),
                        a_second=self._scale.a_second / 2,
                        certain={
                            name: count // 2 + (number < count % 2)
                            for name, count in certain.items()
                        },
                        enough=enough,
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
        at_once = self._shuffled(self._scale.at_once)
        lasting = self._shuffled(self._scale.lasting)
        length_s = self._scale.jobs / self._scale.a_second
        every_s = length_s / (len(at_once) + 1)
        lasts_s = sum(map(self._longest_s, lasting)) / 2
        pause_s = max(1.0, (length_s - lasts_s) / (len(lasting) + 1))
        now = time.monotonic()
        next_at_once, next_lasting = now + every_s, now + pause_s
        goes_on: Lasting | None = None
        while at_once or lasting or goes_on or any(p.is_alive() for p in producers):
            if self._failures:
                return
            now = time.monotonic()
            if goes_on is not None and now >= goes_on.until:
                goes_on.end()
                self._history.write("mishap over", name=goes_on.name)
                goes_on, next_lasting = None, now + pause_s
            elif (
                goes_on is None and lasting and now >= next_lasting and self._may_begin(lasting[-1])
            ):
                goes_on = self._begin(lasting.pop())
            if at_once and now >= next_at_once and self._may_begin(at_once[-1]):
                name = at_once.pop()
                # A new supervisor waits for readiness, which a lasting fault may prevent.
                exclusive = name == strikes.SUPERVISOR
                if (exclusive and goes_on is not None) or not self._strike(name):
                    at_once.insert(0, name)
                next_at_once = max(next_at_once + every_s, now)
            if not at_once and not lasting and goes_on is None:
                self._enough.touch()
            self._print_progress()
            time.sleep(0.05)

    def _shuffled(self, counts: dict[str, int]) -> list[str]:
        names = [name for name, count in counts.items() for _ in range(count)]
        self._rng.shuffle(names)
        return names

    def _begin(self, name: str) -> Lasting | None:
        seconds = self._rng.uniform(0.3, 1.0) * self._longest_s(name)
        self._history.write("mishap", name=name)
        goes_on = strikes.LASTING[name](self._site, seconds)
        self.report.mishaps[name] += 1
        return goes_on

    def _longest_s(self, name: str) -> float:
        return self._scale.longest_s.get(name, self._scale.longest_s[OTHERS])

    def _strike(self, name: str) -> bool:
        """Whether the fault occurred: a process that is just restarting cannot be hit."""
        self._history.write("mishap", name=name)
        done = strikes.AT_ONCE[name](self._site)
        if done:
            self.report.mishaps[name] += 1
            if name in strikes.KILLS:
                self.report.kills[name] += 1
        self._history.write("mishap over", name=name)
        self.report.forged = self._site.forged
        return done

    def _may_begin(self, fault: str) -> bool:
        return fault in LEASES_KEPT or self._calm()

    def _calm(self) -> bool:
        """Wait until no unfinished job has crashed once in an exclusive run; False after CALM_S.

        Two such crashes make a job poison, by design. Faults hit each job once at most, so a harmless
        job that dies is always the system's error.
        """
        return self._eventually(lambda: not self._query(DELICATE), CALM_S)

    def _eventually(self, check: Callable[[], Any], within_s: float) -> bool:
        until = time.monotonic() + within_s
        while not check():
            if time.monotonic() > until:
                return False
            time.sleep(0.05)
        return True

    def _check_settled(self, client: dict[str, Any]) -> None:
        """Check that every process runs, holds its locks and does a job: none is alive but idle."""
        began = time.monotonic()
        if not self._eventually(self._up.all_ready, SETTLED_S):
            self.report.violations["a process did not come back"] = [str(self._up.processes())]
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
                if not self._eventually(
                    lambda job=job: vestry.status(job).finished,  # type: ignore[misc]
                    SETTLED_S,
                )
            ]
        if idle:
            self.report.violations["a worker is alive but idle"] = idle
        locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted"
        if not self._eventually(lambda: self._query(locks) >= 1 + len(PRIVACIES) * 4, SETTLED_S):
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
        unfinished = self._query(_UNFINISHED, "?")
        print(
            f"real: {jobs} jobs, {unfinished} unfinished; {sum(self.report.mishaps.values())} faults",
            file=sys.stderr,
            flush=True,
        )
