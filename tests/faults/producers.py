"""Enqueues with a seed, and writes down what was promised: one process of these, or several.

Each promise is written after its COMMIT was answered. Where the answer was lost, as in a restart of
Postgres, that is written instead: the job may be there or not, but nothing in between.
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
from tests.faults.job_mix import GOOD, OVERTAKEN, Sort
from tests.faults.ledger import History
from vestry import Document, Embedding, Reason, Vestry
from vestry.errors import DatabaseError, Unavailable, VestryError

OWNERS: Final = ("ann", "ben", "cleo", "dan")
PRIVACIES: Final = ("private", "shareable")
AWAY_S: Final = 0.2
"""Pause before a producer tries a database again that was away."""
BAD_AT_ONCE: Final = 80
MOST_OPEN: Final = 400
"""Jobs that are not over; past that nobody enqueues."""
_OPEN: Final = "SELECT count(*) FROM vestry.jobs WHERE finished_at IS NULL"
HARMLESS: Final = frozenset({Reason.BAD_INPUT, Reason.BAD_OUTPUT, Reason.REFUSED})
"""Why a job may be dead that can be replayed here at no cost to its neighbours."""
RACERS: Final = 4
"""Callers that use one idempotency key at the same moment."""


@dataclass(frozen=True, slots=True)
class Order:
    """What one producer is to enqueue.

    Attributes:
        seed: of all its choices.
        jobs: so many at least.
        a_second: jobs a second, about; it never enqueues faster.
        certain: how many transactions of each sort there are in any case, in the first half.
        enough: it goes on until this file is there.
        cancels: the share of transactions that are cancelled soon after.
        kinds: jobs of the other kinds, too.
    """

    seed: int
    jobs: int
    a_second: float
    certain: dict[str, int]
    enough: Path
    cancels: float = 0.03
    kinds: bool = False


@dataclass(slots=True)
class Producer:
    """One caller.

    Args:
        vestry: the client.
        url: a producer's login.
        history: where promises are written.
        order: what to enqueue.
    """

    vestry: Vestry
    url: str
    history: History
    order: Order
    rng: random.Random = field(init=False)
    _conn: psycopg.Connection[Any] | None = None
    _document: int = 0

    def __post_init__(self) -> None:
        self.rng = random.Random(self.order.seed)

    def run(self) -> None:
        """Enqueue it all, in many transactions, at a steady pace."""
        jobs, began = 0, time.monotonic()
        waiting = [name for name, count in self.order.certain.items() for _ in range(count)]
        self.rng.shuffle(waiting)
        # In the first half, so that there is time for poison to die.
        every = max(1, self.order.jobs // 2 // (len(waiting) + 1))
        while jobs < self.order.jobs or not self.order.enough.exists():
            try:
                due = waiting and jobs >= every * (
                    sum(self.order.certain.values()) - len(waiting) + 1
                )
                if due:
                    jobs += self._enqueue(job_mix.ALL[waiting[-1]])
                    waiting.pop()
                else:
                    jobs += self._transaction()
            except (psycopg.OperationalError, psycopg.InterfaceError, Unavailable):
                self._leave()
                time.sleep(AWAY_S)
            except DatabaseError as error:
                self._leave()
                told = f"a caller's statement was refused (SQLSTATE {error.sqlstate})"
                self.history.write("violation", told=told)
            self._rest(began + jobs / self.order.a_second)
        self.history.write("all enqueued", seed=self.order.seed)

    def _rest(self, until: float) -> None:
        """Until it is time for more, and not so much is left to do that nothing else would be."""
        while not self.order.enough.exists():
            if time.monotonic() >= until:
                with suppress(psycopg.Error):
                    row = self.conn.execute(_OPEN).fetchone()
                    if row is None or row[0] <= MOST_OPEN:
                        return
            time.sleep(0.1)

    def _transaction(self) -> int:
        choice = self.rng.random()
        steps: Sequence[tuple[float, Callable[[], int]]] = (
            (0.15, self._documents),
            (0.05, self._race),
            (0.06, self._flow),
            (0.05, self._bad),
            (0.02, self._replay),
            (self.order.cancels, self._stopped),
        )
        for share, step in steps:
            if choice < share:
                return step()
            choice -= share
        others = job_mix.KINDS if self.order.kinds else ()
        made = (job_mix.INNOCENT, job_mix.SLOW, *job_mix.FAULTY, *others)
        return self._enqueue(self.rng.choices(made, [sort.weight for sort in made])[0])

    # -- a connection that may be gone -------------------------------------------------------------

    @property
    def conn(self) -> psycopg.Connection[Any]:
        """A caller's connection, made again where it was lost."""
        if self._conn is None or self._conn.closed:
            self._conn = psycopg.connect(self.url, autocommit=True, connect_timeout=5)
        return self._conn

    def _leave(self) -> None:
        if self._conn is not None:
            self._conn.close()
        self._conn = None

    @contextmanager
    def _promise(self, *, back: bool = False) -> Iterator[list[dict[str, Any]]]:
        """A transaction: what is put into the list is promised once it is committed."""
        made: list[dict[str, Any]] = []
        self.conn.execute("BEGIN")
        yield made
        if back:
            self.conn.execute("ROLLBACK")
            for line in made:
                self.history.write("rolled back", **line)
            return
        try:
            self.conn.execute("COMMIT")
        except psycopg.Error:
            for line in made:
                self.history.write("unknown", **line)
            raise
        for line in made:
            self.history.write("committed", **line)

    # -- what is enqueued --------------------------------------------------------------------------

    def _whose(self) -> dict[str, str]:
        return {"owner": self.rng.choice(OWNERS), "privacy": self.rng.choice(PRIVACIES)}

    def _enqueue(self, sort: Sort) -> int:
        """Some jobs of one sort, or one that is none of the harmless among some of those."""
        rng = self.rng
        if sort is job_mix.INNOCENT:
            chosen = [sort] * rng.randint(1, 60)
        elif sort is job_mix.SLOW:
            chosen = [sort] * rng.randint(1, 3)
        elif sort in job_mix.KINDS:
            chosen = [sort] * rng.randint(1, 6)
        else:
            chosen = [job_mix.INNOCENT] * rng.randint(0, sort.innocents)
            chosen.insert(rng.randint(0, len(chosen)), sort)
        requests = [each.make(place) for place, each in enumerate(chosen)]
        back = sort is job_mix.INNOCENT and rng.random() < 0.1
        options = self._whose() | {"latency": rng.choice(("bulk", "bulk", "interactive"))}
        with self._promise(back=back) as made:
            refs = self.vestry.enqueue_many(self.conn, requests, **options)
            for each in dict.fromkeys(chosen):
                made.append(
                    {
                        "jobs": [
                            str(ref.id) for ref, s in zip(refs, chosen, strict=True) if s is each
                        ],
                        "sort": each.name,
                        "ends": each.ends,
                        "codes": each.codes,
                    }
                )
        return 0 if back else len(refs)

    def _documents(self) -> int:
        """Documents, now and then enqueued again at once or deleted: overtaken work ends so."""
        whose = self._whose()
        first, count = self._document, self.rng.randint(1, 8)
        self._document += count
        names = [f"{self.order.seed}.{first + place}" for place in range(count)]
        again = self.rng.random()
        self._index(whose, names, "of the diary", overtaken=again < 0.4)
        if again < 0.2:
            self._index(whose, names, "of the diary, amended", overtaken=False)
        elif again < 0.4:
            with self._promise() as made:
                self.vestry.delete_documents(self.conn, source="diary", ids=names, **whose)
                made.append({"jobs": [], "sort": "deletion", "ends": GOOD, "gone": names, **whose})
        return 1 + (again < 0.2)

    def _index(
        self, whose: dict[str, str], names: Sequence[str], text: str, *, overtaken: bool
    ) -> None:
        documents = [Document(f"entry {name} {text}", id=name) for name in names]
        with self._promise() as made:
            ref = self.vestry.enqueue(
                self.conn, Embedding(documents=documents, source="diary"), **whose
            )
            made.append(
                {
                    "jobs": [str(ref.id)],
                    "sort": "documents",
                    "ends": OVERTAKEN if overtaken else GOOD,
                    "texts": {document.id: document.text for document in documents},
                    **whose,
                }
            )

    def _race(self) -> int:
        """One key, used by several callers in the same moment, is one job."""
        key, whose = f"key-{self.order.seed}-{self.rng.randrange(10**9)}", self._whose()
        start, ids = threading.Barrier(RACERS), set[str]()
        unknown: list[bool] = []

        def call() -> None:
            with psycopg.connect(self.url, autocommit=True, connect_timeout=5) as conn:
                start.wait(10)
                conn.execute("BEGIN")
                ref = self.vestry.enqueue(
                    conn, Embedding(texts=["said by many, done once"]), idempotency_key=key, **whose
                )
                ids.add(str(ref.id))
                conn.execute("COMMIT")

        def caught() -> None:
            try:
                call()
            except (psycopg.Error, VestryError, threading.BrokenBarrierError):
                # Whether it did commit is not known; then nothing can be said of the others' answer.
                start.abort()
                unknown.append(True)

        racers = [threading.Thread(target=caught) for _ in range(RACERS)]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join()
        what = "unknown" if unknown else "committed"
        self.history.write(what, jobs=sorted(ids), sort="keyed", ends=GOOD)
        if not unknown and len(ids) != 1:
            self.history.write("violation", told="one key made several jobs")
        return 1

    def _flow(self) -> int:
        """A job and what waits on it; now and then cancelled, at whatever moment that is."""
        rng = self.rng
        flow = flows.make(rng, rng.choice(OWNERS))
        with self._promise() as made:
            flows.enqueue(self.conn, flow)
            stops = rng.random() < 0.5
            made.append(
                {
                    "jobs": [str(job) for job in flow.jobs],
                    "sort": "flow",
                    "ends": job_mix.STOPPED if stops else GOOD,
                }
            )
        if stops:
            time.sleep(rng.random() * 0.15)
            states = self.vestry.cancel(rng.choice(flow.jobs))
            self.history.write("cancelled", states={str(job): told for job, told in states.items()})
        return len(flow.jobs)

    def _stopped(self) -> int:
        """Many jobs, and soon after many of them cancelled in one call, running ones too."""
        rng = self.rng
        with self._promise() as made:
            refs = self.vestry.enqueue_many(
                self.conn,
                [job_mix.INNOCENT.make(n) for n in range(rng.randint(5, 30))],
                latency=rng.choice(("bulk", "interactive")),
                **self._whose(),
            )
            made.append(
                {
                    "jobs": [str(ref.id) for ref in refs],
                    "sort": "stopped",
                    "ends": job_mix.STOPPED,
                }
            )
        time.sleep(rng.random() * 0.15)
        states = self.vestry.cancel(rng.sample(refs, rng.randint(1, len(refs))))
        self.history.write("cancelled", states={str(job): told for job, told in states.items()})
        return len(refs)

    def _replay(self) -> int:
        """Dead jobs once more, each once however often it is asked for; they die again."""
        found = self.vestry.dead(owner=self.rng.choice(OWNERS), limit=3)
        jobs = [job.status for job in found if job.reason in HARMLESS]
        for job in jobs:
            first, again = self.vestry.replay(job), self.vestry.replay(job)
            self.history.write("committed", jobs=[str(first.id)], sort="replay", ends=job_mix.DEAD)
            if again.created or again.id != first.id:
                self.history.write("violation", told="a job was replayed twice")
        return len(jobs)

    def _bad(self) -> int:
        """Bad input is refused before it is a job, and the transaction goes on."""
        for make in self.rng.choices(job_mix.BAD_ENQUEUES, k=BAD_AT_ONCE):
            with self.conn.transaction():
                try:
                    self.vestry.enqueue(self.conn, make(), owner="ann", privacy="private")
                except Unavailable:
                    raise
                except VestryError:
                    self.history.write("bad input")
                else:
                    self.history.write("violation", told="bad input became a job")
        return 0
