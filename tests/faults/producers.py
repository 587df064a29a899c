"""What is enqueued: jobs of every sort that the embedding kind knows, and the promise made for each."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psycopg

from tests.faults.ledger import History
from vestry import Document, Embedding, Vestry
from vestry.errors import VestryError

OWNERS: Final = ("ann", "ben", "cleo", "dan")
GOOD: Final = ("succeeded",)
SORTS: Final[dict[str, tuple[str, tuple[str, ...], int]]] = {
    # text, how it may end, weight
    "innocent": ("a quiet day at the office", GOOD, 400),
    "raises": ("echo!raise and again", ("dead",), 2),
    "crashes": ("echo!exit at once", ("dead",), 2),
    "hangs": ("echo!sleep=600 for ever", ("dead",), 0),
    "spoils its vector": ("echo!nan in it", ("dead",), 4),
    "is too long": ("word " * 900, ("dead",), 4),
    "is refused": ("echo!refused by it", ("dead",), 4),
}
BAD_ENQUEUES: Final = (
    lambda: Embedding(texts=[""]),
    lambda: Embedding(texts=["a\0b"]),
    lambda: Embedding(texts=["\ud800"]),
    lambda: Embedding(texts=[]),
    lambda: Embedding(documents=[Document("x")]),
    lambda: Embedding(documents=[Document("x", id="1"), Document("y", id="1")], source="s"),
)


@dataclass(slots=True)
class Producer:
    """Enqueues with a seed of its own and writes down what it was promised.

    Args:
        vestry: the client.
        conn: a connection of a producer's login.
        history: where promises are written.
        rng: all choices.
    """

    vestry: Vestry
    conn: psycopg.Connection[object]
    history: History
    rng: random.Random
    _keys: list[tuple[str, str, str]] = field(default_factory=list)
    _document: int = 0

    def produce(self, jobs: int, hangs: int, a_second: float, enough: Path) -> None:
        """Enqueue so many jobs at least, in many transactions, some taken back, at a steady pace.

        Args:
            jobs: in all.
            hangs: how many of them hang for ever.
            a_second: jobs a second, about.
            enough: goes on until this file is there.
        """
        for _ in range(hangs):
            self._enqueue("hangs", 1)
        stay = hangs
        began = time.monotonic()
        while stay < jobs or not enough.exists():
            stay += self._transaction(self.rng.randint(1, 60))
            time.sleep(max(0.0, began + stay / a_second - time.monotonic()))
        self.history.write("all enqueued")

    def _transaction(self, most: int) -> int:
        sort = self.rng.choices(list(SORTS), [weight for *_, weight in SORTS.values()])[0]
        choice = self.rng.random()
        if choice < 0.15:
            return self._documents(most)
        if choice < 0.25:
            return self._keyed()
        if choice < 0.30:
            self._bad()
            return 0
        return self._enqueue(sort, most if sort == "innocent" else 1)

    def _enqueue(self, sort: str, count: int) -> int:
        text, ends, _ = SORTS[sort]
        back = sort == "innocent" and self.rng.random() < 0.1
        self.conn.execute("BEGIN")
        refs = self.vestry.enqueue_many(
            self.conn,
            [Embedding(texts=[f"{text} {place}"]) for place in range(count)],
            owner=self.rng.choice(OWNERS),
            privacy=self.rng.choice(("private", "shareable")),
            latency=self.rng.choice(("bulk", "bulk", "interactive")),
        )
        ids = [str(ref.id) for ref in refs]
        if back:
            self.conn.execute("ROLLBACK")
            self.history.write("rolled back", jobs=ids)
            return 0
        self.conn.execute("COMMIT")
        self.history.write("committed", jobs=ids, sort=sort, ends=ends)
        return count

    def _documents(self, count: int) -> int:
        """Documents, now and then enqueued again at once or deleted: overtaken work ends so."""
        owner, privacy = self.rng.choice(OWNERS), self.rng.choice(("private", "shareable"))
        texts = [f"entry {self._document + place} of the diary" for place in range(min(count, 8))]
        documents = [
            Document(text, id=str(self._document + place)) for place, text in enumerate(texts)
        ]
        self._document += len(documents)
        again = self.rng.random()
        self._index(owner, privacy, documents, overtaken=again < 0.4)
        if again < 0.2:
            changed = [Document(d.text + " amended", id=d.id) for d in documents]
            return 1 + self._index(owner, privacy, changed, overtaken=False)
        if again < 0.4:
            self.vestry.delete_documents(
                self.conn,
                owner=owner,
                privacy=privacy,
                source="diary",
                ids=[str(d.id) for d in documents],
            )
        return 1

    def _index(
        self, owner: str, privacy: str, documents: list[Document], *, overtaken: bool
    ) -> int:
        with self.conn.transaction():
            ref = self.vestry.enqueue(
                self.conn,
                Embedding(documents=documents, source="diary"),
                owner=owner,
                privacy=privacy,
            )
        ends = ("succeeded", "superseded") if overtaken else GOOD
        self.history.write("committed", jobs=[str(ref.id)], sort="documents", ends=ends)
        return 1

    def _keyed(self) -> int:
        """The same key twice is one job."""
        key = f"key-{self.rng.randrange(10**9)}"
        owner, privacy = self.rng.choice(OWNERS), self.rng.choice(("private", "shareable"))
        ids = set()
        for _ in range(2):
            with self.conn.transaction():
                ref = self.vestry.enqueue(
                    self.conn,
                    Embedding(texts=["said twice, done once"]),
                    owner=owner,
                    privacy=privacy,
                    idempotency_key=key,
                )
            ids.add(str(ref.id))
        self.history.write("committed", jobs=sorted(ids), sort="keyed", ends=GOOD)
        if len(ids) != 1:
            self.history.write("violation", told="one key made two jobs")
        return 1

    def _bad(self) -> None:
        """Bad input is refused before it is a job, and the transaction goes on."""
        make = self.rng.choice(BAD_ENQUEUES)
        with self.conn.transaction():
            try:
                self.vestry.enqueue(self.conn, make(), owner="ann", privacy="private")
            except VestryError:
                self.history.write("bad input")
            else:
                self.history.write("violation", told="bad input became a job")
