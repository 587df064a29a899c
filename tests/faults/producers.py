"""Producers: they enqueue jobs chosen by a seed, and record the jobs that were committed.

A job is recorded as committed after the answer to COMMIT. If the answer was lost, as in a restart of
Postgres, it is recorded as unknown: the job may exist or not, but nothing in between.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psycopg

from tests.faults import flows, job_mix
from tests.faults.job_mix import GOOD, SUPERSEDED, Variant
from tests.faults.ledger import History
from tests.faults.servers import UNFINISHED
from vestry import Document, Embedding, Reason, Vestry
from vestry.errors import DatabaseError, Unavailable, VestryError

OWNERS: Final = ("ann", "ben", "cleo", "dan")
PRIVACIES: Final = ("private", "shareable")
RETRY_S: Final = 0.2
"""Pause before a retry after a connection error."""
BAD_INPUTS_A_STEP: Final = 80
"""Requests with bad input in one step."""
MAX_UNFINISHED: Final = 400
"""Producers wait while there are more unfinished jobs."""
REPLAYABLE: Final = frozenset({Reason.BAD_INPUT, Reason.BAD_OUTPUT, Reason.REFUSED})
"""Reasons of dead jobs whose replay does not harm other jobs."""
RACERS: Final = 4
"""Callers that use one idempotency key at the same time."""


@dataclass(frozen=True, slots=True)
class Order:
    """The work of one producer.

    Attributes:
        seed: of all choices.
        jobs: least number of jobs.
        jobs_per_s: about the highest rate.
        required: variant to the least number of its transactions, all in the first half.
        stop_file: the producer ends once it has enqueued all jobs and this file exists.
        cancels: the share of transactions whose jobs are cancelled soon after.
        kinds: whether jobs of the other kinds are enqueued, too.
    """

    seed: int
    jobs: int
    jobs_per_s: float
    required: dict[str, int]
    stop_file: Path
    cancels: float = 0.03
    kinds: bool = False


@dataclass(slots=True)
class Producer:
    """One caller.

    Args:
        vestry: the client.
        url: a producer's login.
        history: the file of records.
        order: the work.
    """

    vestry: Vestry
    url: str
    history: History
    order: Order
    rng: random.Random = field(init=False)
    _conn: psycopg.Connection[Any] | None = None
    _document: int = 0
    _first_steps: list[Callable[[], int]] = field(init=False)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.order.seed)
        self._first_steps = [
            self._documents, self._race, self._flow, self._bad_input, self._replay, self._cancelled,
        ]  # fmt: skip
        self.rng.shuffle(self._first_steps)

    def run(self) -> None:
        """Enqueue all jobs in many transactions, at a steady rate."""
        jobs, began = 0, time.monotonic()
        remaining = [name for name, count in self.order.required.items() for _ in range(count)]
        self.rng.shuffle(remaining)
        # In the first half, which leaves time for poison to become dead.
        every = max(1, self.order.jobs // 2 // (len(remaining) + 1))
        while jobs < self.order.jobs or not self.order.stop_file.exists():
            try:
                due = remaining and jobs >= every * (
                    sum(self.order.required.values()) - len(remaining) + 1
                )
                if due:
                    jobs += self._enqueue(job_mix.ALL[remaining[-1]])
                    remaining.pop()
                else:
                    jobs += self._transaction()
            except (psycopg.OperationalError, psycopg.InterfaceError, Unavailable):
                self._disconnect()
                time.sleep(RETRY_S)
            except DatabaseError as error:
                self._disconnect()
                detail = f"a caller's statement was refused (SQLSTATE {error.sqlstate})"
                self.history.write("violation", detail=detail)
            self._pause(began + jobs / self.order.jobs_per_s)
        self.history.write("all enqueued", seed=self.order.seed)

    def _pause(self, until: float) -> None:
        """Wait until a time, and until there are fewer than MOST_OPEN unfinished jobs."""
        while not self.order.stop_file.exists():
            if time.monotonic() >= until:
                with suppress(psycopg.Error):
                    row = self.conn.execute(UNFINISHED).fetchone()
                    if row is None or row[0] <= MAX_UNFINISHED:
                        return
            time.sleep(0.1)

    def _transaction(self) -> int:
        """Run one step: each kind of step once, then at random."""
        if self._first_steps:
            jobs = self._first_steps[-1]()
            self._first_steps.pop()
            return jobs
        choice = self.rng.random()
        steps: Sequence[tuple[float, Callable[[], int]]] = (
            (0.15, self._documents),
            (0.05, self._race),
            (0.06, self._flow),
            (0.05, self._bad_input),
            (0.02, self._replay),
            (self.order.cancels, self._cancelled),
        )
        for share, step in steps:
            if choice < share:
                return step()
            choice -= share
        others = job_mix.KINDS if self.order.kinds else ()
        variants = (job_mix.HARMLESS, job_mix.SLOW, *job_mix.FAULTY, *others)
        weights = [variant.weight for variant in variants]
        return self._enqueue(self.rng.choices(variants, weights)[0])

    @property
    def conn(self) -> psycopg.Connection[Any]:
        """The caller's connection, reopened after it was lost."""
        if self._conn is None or self._conn.closed:
            self._conn = psycopg.connect(self.url, autocommit=True, connect_timeout=5)
        return self._conn

    def _disconnect(self) -> None:
        if self._conn is not None:
            self._conn.close()
        self._conn = None

    @contextmanager
    def _recorded_transaction(self, *, roll_back: bool = False) -> Iterator[list[dict[str, Any]]]:
        """A transaction; the lines appended to the yielded list are recorded once it has ended."""
        lines: list[dict[str, Any]] = []
        self.conn.execute("BEGIN")
        yield lines
        if roll_back:
            self.conn.execute("ROLLBACK")
            for line in lines:
                self.history.write("rolled back", **line)
            return
        try:
            self.conn.execute("COMMIT")
        except psycopg.Error:
            for line in lines:
                self.history.write("unknown", **line)
            raise
        for line in lines:
            self.history.write("committed", **line)

    def _choose_owner(self) -> dict[str, str]:
        return {"owner": self.rng.choice(OWNERS), "privacy": self.rng.choice(PRIVACIES)}

    def _enqueue(self, variant: Variant) -> int:
        """Enqueue jobs of a harmless variant, or one faulty job among harmless neighbours."""
        rng = self.rng
        if variant is job_mix.HARMLESS:
            chosen = [variant] * rng.randint(1, 60)
        elif variant is job_mix.SLOW:
            chosen = [variant] * rng.randint(1, 3)
        elif variant in job_mix.KINDS:
            chosen = [variant] * rng.randint(1, 6)
        else:
            chosen = [job_mix.HARMLESS] * rng.randint(0, variant.neighbours)
            chosen.insert(rng.randint(0, len(chosen)), variant)
        requests = [each.make(number) for number, each in enumerate(chosen)]
        roll_back = variant is job_mix.HARMLESS and rng.random() < 0.1
        options = self._choose_owner() | {"latency": rng.choice(("bulk", "bulk", "interactive"))}
        with self._recorded_transaction(roll_back=roll_back) as lines:
            refs = self.vestry.enqueue_many(self.conn, requests, **options)
            for each in dict.fromkeys(chosen):
                lines.append(
                    {
                        "jobs": [
                            str(ref.id) for ref, v in zip(refs, chosen, strict=True) if v is each
                        ],
                        "variant": each.name,
                        "ends": each.ends,
                        "codes": each.codes,
                    }
                )
        return 0 if roll_back else len(refs)

    def _documents(self) -> int:
        """Index documents; some are enqueued again or deleted at once, which supersedes their jobs."""
        owner = self._choose_owner()
        first, count = self._document, self.rng.randint(1, 8)
        self._document += count
        names = [f"{self.order.seed}.{first + number}" for number in range(count)]
        again = self.rng.random()
        self._index(owner, names, "of the diary", superseded=again < 0.4)
        if again < 0.2:
            self._index(owner, names, "of the diary, amended", superseded=False)
        elif again < 0.4:
            with self._recorded_transaction() as lines:
                self.vestry.delete_documents(self.conn, source="diary", ids=names, **owner)
                lines.append(
                    {"jobs": [], "variant": "deletion", "ends": GOOD, "gone": names, **owner}
                )
        return 1 + (again < 0.2)

    def _index(
        self, owner: dict[str, str], names: Sequence[str], text: str, *, superseded: bool
    ) -> None:
        documents = [Document(f"entry {name} {text}", id=name) for name in names]
        with self._recorded_transaction() as lines:
            ref = self.vestry.enqueue(
                self.conn, Embedding(documents=documents, source="diary"), **owner
            )
            lines.append(
                {
                    "jobs": [str(ref.id)],
                    "variant": "documents",
                    "ends": SUPERSEDED if superseded else GOOD,
                    "texts": {document.id: document.text for document in documents},
                    **owner,
                }
            )

    def _race(self) -> int:
        """Use one idempotency key in several callers at the same time, which makes one job."""
        key, owner = f"key-{self.order.seed}-{self.rng.randrange(10**9)}", self._choose_owner()
        start, ids = threading.Barrier(RACERS), set[str]()
        unknown: list[bool] = []

        def call() -> None:
            with psycopg.connect(self.url, autocommit=True, connect_timeout=5) as conn:
                start.wait(10)
                conn.execute("BEGIN")
                ref = self.vestry.enqueue(
                    conn,
                    Embedding(texts=["enqueued by several callers"]),
                    idempotency_key=key,
                    **owner,
                )
                ids.add(str(ref.id))
                conn.execute("COMMIT")

        def call_or_abort() -> None:
            try:
                call()
            except (psycopg.Error, VestryError, threading.BrokenBarrierError):
                # Whether it committed is unknown, so the results of the others prove nothing.
                start.abort()
                unknown.append(True)

        racers = [threading.Thread(target=call_or_abort) for _ in range(RACERS)]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join()
        outcome = "unknown" if unknown else "committed"
        self.history.write(outcome, jobs=sorted(ids), variant="keyed", ends=GOOD)
        if not unknown and len(ids) != 1:
            self.history.write("violation", detail="one key made several jobs")
        return 1

    def _flow(self) -> int:
        """Enqueue a flow; half of them are cancelled at a random moment."""
        rng = self.rng
        flow = flows.random_flow(rng, rng.choice(OWNERS))
        with self._recorded_transaction() as lines:
            flows.enqueue(self.conn, flow)
            cancelled = rng.random() < 0.5
            lines.append(
                {
                    "jobs": [str(job) for job in flow.jobs],
                    "variant": "flow",
                    "ends": job_mix.CANCELLED if cancelled else GOOD,
                }
            )
        if cancelled:
            time.sleep(rng.random() * 0.15)
            states = self.vestry.cancel(rng.choice(flow.jobs))
            self.history.write(
                "cancelled", states={str(job): state for job, state in states.items()}
            )
        return len(flow.jobs)

    def _cancelled(self) -> int:
        """Enqueue many jobs and cancel many of them in one call soon after, running ones too."""
        rng = self.rng
        with self._recorded_transaction() as lines:
            refs = self.vestry.enqueue_many(
                self.conn,
                [job_mix.HARMLESS.make(n) for n in range(rng.randint(5, 30))],
                latency=rng.choice(("bulk", "interactive")),
                **self._choose_owner(),
            )
            lines.append(
                {
                    "jobs": [str(ref.id) for ref in refs],
                    "variant": "cancelled",
                    "ends": job_mix.CANCELLED,
                }
            )
        time.sleep(rng.random() * 0.15)
        states = self.vestry.cancel(rng.sample(refs, rng.randint(1, len(refs))))
        self.history.write("cancelled", states={str(job): state for job, state in states.items()})
        return len(refs)

    def _replay(self) -> int:
        """Replay dead jobs, each twice: the first call makes a job, which becomes dead again."""
        dead = self.vestry.dead(owner=self.rng.choice(OWNERS), limit=3)
        statuses = [job.status for job in dead if job.reason in REPLAYABLE]
        for status in statuses:
            first, again = self.vestry.replay(status), self.vestry.replay(status)
            self.history.write(
                "committed", jobs=[str(first.id)], variant="replay", ends=job_mix.DEAD
            )
            if again.created or again.id != first.id:
                self.history.write("violation", detail="a job was replayed twice")
        return len(statuses)

    def _bad_input(self) -> int:
        """Enqueue bad input: it is refused before it is a job, and the transaction continues."""
        for make in self.rng.choices(job_mix.BAD_ENQUEUES, k=BAD_INPUTS_A_STEP):
            with self.conn.transaction():
                try:
                    self.vestry.enqueue(self.conn, make(), owner="ann", privacy="private")
                except Unavailable:
                    raise
                except VestryError:
                    self.history.write("bad input")
                else:
                    self.history.write("violation", detail="bad input became a job")
        return 0
