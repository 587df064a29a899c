"""The laboratory of the real thing: `vestry up` with Celery workers, every part of it struck in turn.

Real workers, dispatcher, reconciler and supervisor are killed, frozen and cut off from database and
broker by proxies; the servers are restarted, emptied and stopped. Some faults strike at once, others
last; the two go on beside each other, by one seed.
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
    "VESTRY_EMBEDDING_BACKEND": "echo",
    "VESTRY_LLAMA": "off",
    "VESTRY_LEASE_S": "2",
    "VESTRY_HEARTBEAT_S": "0.5",
    "VESTRY_MAX_RUN_S": "6",
    "VESTRY_BATCH_S": "0.5",
    "VESTRY_BACKOFF_CAP_S": "0.2",
    "VESTRY_DEAF_S": "8",
}
PATIENCE_S: Final = 40.0
"""After the last fault some job must end in every such time, until none is left."""
TELL_S: Final = 5.0
OTHERS: Final = "others"
SETTLED_S: Final = 20.0
"""In which a job of every lane is done once all faults are over: nobody is left alive but idle."""
HARMLESS: Final = frozenset(
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
RESTLESS_S: Final = 15.0
"""How long a strike waits for suspects that crashed once to be done; then it is left out."""
_LEFT: Final = "SELECT count(*) FROM vestry.jobs WHERE finished_at IS NULL"


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of everything; the names of faults are those of `strikes`."""

    jobs: int
    a_second: float
    certain: dict[str, int]
    at_once: dict[str, int]
    lasting: dict[str, int]
    longest_s: dict[str, float]
    """How long each lasting fault lasts at most; `OTHERS` for those that are not named."""
    keep_jobs_s: float = 3600.0


class Laboratory:
    """One run.

    Args:
        path: the stack's home, empty.
        seed: of all choices.
        scale: how much of everything.
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
        self._told_at = 0.0
        self._failures: list[BaseException] = []

    def run(self) -> Report:
        """Start everything, enqueue with faults, let everything end, check."""
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
        # Nothing is read from the stack's own client file later: a killed supervisor leaves none.
        client = self._up.client
        try:
            # Without poison: a child that dies beside the one that is killed is then a violation.
            harmless = {sort.name: self._scale.certain.get(sort.name, 0) for sort in KINDS}
            producers = self._start_producers(client, 500, 0, harmless, self._children_killed)
            kill_each_child(self._site, self._rng, self.report, self._calm)
            self._children_killed.touch()
            for producer in producers:
                producer.join()
            self._stir(
                self._start_producers(
                    client, 600, self._scale.jobs, self._scale.certain, self._enough
                )
            )
        finally:
            self._children_killed.touch()
            self._enough.touch()
            self._site.restore()
        left, until = -1, time.monotonic() + PATIENCE_S
        while left != 0 and time.monotonic() < until:
            self._tell()
            time.sleep(0.2)
            now_left = self._ask(_LEFT, default=left)
            if now_left != left:
                left, until = now_left, time.monotonic() + PATIENCE_S
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

    def _stir(self, producers: list[threading.Thread]) -> None:
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
            elif goes_on is None and lasting and now >= next_lasting and self._may(lasting[-1]):
                goes_on = self._begin(lasting.pop())
            if at_once and now >= next_at_once and self._may(at_once[-1]):
                name = at_once.pop()
                # A supervisor brings everything to readiness, which a lasting fault may prevent.
                alone = name == strikes.SUPERVISOR
                if (alone and goes_on is not None) or not self._strike(name):
                    at_once.insert(0, name)
                next_at_once = max(next_at_once + every_s, now)
            if not at_once and not lasting and goes_on is None:
                self._enough.touch()
            self._tell()
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
        """Whether it could be done: what is just starting again is not there to be struck."""
        self._history.write("mishap", name=name)
        done = strikes.AT_ONCE[name](self._site)
        if done:
            self.report.mishaps[name] += 1
            if name in strikes.KILLS:
                self.report.kills[name] += 1
        self._history.write("mishap over", name=name)
        self.report.forged = self._site.forged
        return done

    def _may(self, fault: str) -> bool:
        return fault in HARMLESS or self._calm()

    def _calm(self) -> bool:
        """Whether no job is about that crashed once while it ran alone.

        Twice is, by design, what a poison job looks like. Each suspect is struck once at most: a dead
        innocent is then always the system's fault.
        """
        return self._eventually(lambda: not self._ask(DELICATE), RESTLESS_S)

    def _eventually(self, check: Callable[[], Any], within_s: float) -> bool:
        until = time.monotonic() + within_s
        while not check():
            if time.monotonic() > until:
                return False
            time.sleep(0.05)
        return True

    def _check_settled(self, client: dict[str, Any]) -> None:
        """Every process is there, holds what it must, and does a job: nobody is alive but idle."""
        began = time.monotonic()
        if not self._eventually(self._up.all_ready, SETTLED_S):
            self.report.violations["a process did not come back"] = [str(self._up.processes())]
        with (
            Vestry(client["database_url"], client["keyring"]) as vestry,
            psycopg.connect(client["database_url"], autocommit=True) as conn,
        ):
            jobs = [
                vestry.enqueue(conn, asked, owner=OWNERS[0], privacy=privacy, latency=latency)
                for privacy in PRIVACIES
                for latency in ("interactive", "bulk")
                for asked in (Embedding(texts=["the last"]), Ocr(PAGE))
            ]
            told = [str(job.id) for job in jobs]
            self._history.write("committed", jobs=told, sort="the last", ends=["succeeded"])
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
        if not self._eventually(lambda: self._ask(locks) >= 1 + len(PRIVACIES) * 4, SETTLED_S):
            self.report.violations["a dispatcher or reconciler is alive but idle"] = [""]
        self.report.seen["settled after ms"] = int(1000 * (time.monotonic() - began))

    def _ask(self, query: str, default: Any = True) -> Any:
        try:
            with psycopg.connect(
                self._up.superuser_url, autocommit=True, connect_timeout=2
            ) as conn:
                row = conn.execute(query.encode()).fetchone()
        except psycopg.Error:
            return default
        return default if row is None else row[0]

    def _tell(self) -> None:
        if time.monotonic() < self._told_at + TELL_S:
            return
        self._told_at = time.monotonic()
        self._growth.sample(p["pid"] for p in self._up.processes() if p["pid"])
        jobs = self._ask("SELECT count(*) FROM vestry.jobs", "?")
        left = self._ask("SELECT count(*) FROM vestry.jobs WHERE finished_at IS NULL", "?")
        print(
            f"real: {jobs} jobs, {left} to go; {sum(self.report.mishaps.values())} faults",
            file=sys.stderr,
            flush=True,
        )
