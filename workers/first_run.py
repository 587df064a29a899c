"""What `make run` runs: index the samples, search them, show what happened.

Two people's diaries are indexed as private, 300 verses as shareable. It is also an example of the
producer library: `read`, `index` and the search in `show_search` are what a backend would write.
"""

from __future__ import annotations

import json
import signal
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
from rich.console import Console
from rich.table import Table

from vestry import Document, Embedding, IndexResult, Result, Vestry, VestryError
from workers.detached import Detached, running_in, start_detached
from workers.home import CHECKOUT, default_home
from workers.supervisor import StartError

SAMPLES = CHECKOUT / "samples"
PATIENCE_S = 300.0
"""For the stack to be ready, and for one job; a slow machine takes a minute for all of them."""


@dataclass(frozen=True)
class Collection:
    """One file, whose it is, and who may see it."""

    file: str
    source: str
    owner: str
    privacy: str
    documents_per_job: int


@dataclass(frozen=True)
class Question:
    """One search, by its owner."""

    text: str
    owner: str
    shareable: tuple[str, ...] = ()


COLLECTIONS = (
    Collection("diary_1660.jsonl", "diary", "samuel-1660", "private", 11),
    Collection("diary_1663.jsonl", "diary", "samuel-1663", "private", 11),
    Collection("verses.txt", "kjv", "library", "shareable", 50),
)
QUESTIONS = (
    Question("a sermon heard in church", "samuel-1660"),
    Question("the dancing master teaching my wife to dance", "samuel-1663"),
    Question("sleeping badly at night", "samuel-1660", ("kjv",)),
)


def main() -> int:
    """Run it all; the exit status."""
    # `kill` ends it in order too: the stack it started is stopped on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    console = Console(width=None if sys.stdout.isatty() else 110, highlight=False)
    began = time.monotonic()
    try:
        with stack(console) as running:
            client = running.client
            with (
                Vestry(client["database_url"], client["keyring"]) as vestry,
                psycopg.connect(client["database_url"], autocommit=True) as conn,
            ):
                everything_found = show(vestry, conn, console)
    except (VestryError, StartError) as error:
        console.print(f"[bold red]{type(error).__name__}:[/] {error}")
        return 1
    console.print(f"Done in {time.monotonic() - began:.0f} s.")
    return 0 if everything_found else 1


@contextmanager
def stack(console: Console) -> Iterator[Detached]:
    """The stack that runs in this home, left running; or one that is started and stopped."""
    running = running_in(default_home())
    if running is not None:
        console.print("A stack is running here already: it is used, and left running.")
        until = time.monotonic() + PATIENCE_S
        while not running.state().get("ready"):
            if time.monotonic() > until or not running.running():
                raise StartError("the stack that was running here did not become ready")
            time.sleep(0.1)
        yield running
        return
    began = time.monotonic()
    console.print("Starting Postgres, Valkey, dispatcher, reconciler and four workers …")
    with start_detached(flower=False) as running:
        console.print(f"Every process is ready after {time.monotonic() - began:.0f} s.")
        yield running
        console.print("\nStopping everything …")


def show(vestry: Vestry, conn: psycopg.Connection, console: Console) -> bool:
    """Index, search and report; whether every document was indexed and every search answered."""
    since = conn.execute("SELECT vestry.clock()").fetchone()
    assert since is not None  # noqa: S101 - a row always comes
    console.print("Indexing; where there is much to embed, two cores take half a minute …")
    results = index(vestry, conn)
    show_index(results, console)
    found = [show_search(vestry, question, console) for question in QUESTIONS]
    show_lanes(conn, since[0], console)
    return all(found) and not any(result.failed for result in results.values())


# -- what a backend would write --------------------------------------------------------------------


def read(collection: Collection) -> Iterator[Document]:
    """The documents of a file: JSON Lines, or `REFERENCE text` lines."""
    for line in (SAMPLES / collection.file).read_text(encoding="utf-8").splitlines():
        if collection.file.endswith(".jsonl"):
            entry = json.loads(line)
            yield Document(entry["text"], id=entry["id"], date=entry["date"])
        else:
            reference, text = line.split(" ", 1)
            yield Document(text, id=reference)


def index(vestry: Vestry, conn: psycopg.Connection) -> dict[Collection, IndexResult]:
    """Enqueue every collection in a transaction of its own, then wait for all of them."""
    jobs = {}
    for collection in COLLECTIONS:
        documents = list(read(collection))
        step = collection.documents_per_job
        with conn.transaction():
            jobs[collection] = vestry.enqueue_many(
                conn,
                [
                    Embedding(documents=documents[i : i + step], source=collection.source)
                    for i in range(0, len(documents), step)
                ],
                owner=collection.owner,
                privacy=collection.privacy,
            )
    return {
        collection: add_up([vestry.wait(job, PATIENCE_S) for job in enqueued])
        for collection, enqueued in jobs.items()
    }


def add_up(results: Sequence[Result]) -> IndexResult:
    """One result for the jobs of a collection."""
    parts = [result for result in results if isinstance(result, IndexResult)]
    return IndexResult(
        documents=sum(part.documents for part in parts),
        chunks=sum(part.chunks for part in parts),
        embedded=sum(part.embedded for part in parts),
        unchanged=sum(part.unchanged for part in parts),
        superseded=sum(part.superseded for part in parts),
        failed=tuple(document for part in parts for document in part.failed),
        space=parts[0].space,
    )


# -- printing --------------------------------------------------------------------------------------


def show_index(results: dict[Collection, IndexResult], console: Console) -> None:
    """One line a collection, and whether anything had to be embedded."""
    table = Table("source", "owner", "privacy", title="Indexed", title_justify="left")
    for name in ("documents", "chunks", "embedded", "unchanged", "failed"):
        table.add_column(name, justify="right")
    for collection, result in results.items():
        table.add_row(
            collection.source,
            collection.owner,
            collection.privacy,
            *map(
                str,
                (
                    result.documents,
                    result.chunks,
                    result.embedded,
                    result.unchanged,
                    len(result.failed),
                ),
            ),
        )
    console.print()
    console.print(table)
    documents = sum(result.documents for result in results.values())
    if documents == sum(result.unchanged for result in results.values()):
        console.print(f"Nothing was embedded again: all {documents} documents are unchanged.")


def show_search(vestry: Vestry, question: Question, console: Console) -> bool:
    """Search and print the hits; whether there were any, and nobody else's private ones."""
    hits = vestry.search(
        question.text,
        owner=question.owner,
        privacy="private",
        sources=question.shareable,
        limit=4,
    )
    where = " and ".join(("own diary", *question.shareable))
    table = Table(
        "owner", "date or reference", "score", "text", show_lines=True, title_justify="left",
        title=f"“{question.text}”, asked by {question.owner}, in {where}",
    )  # fmt: skip
    for hit in hits:
        text = textwrap.shorten(hit.text or "", 150, placeholder=" …")
        table.add_row(hit.owner, str(hit.date or hit.document), f"{hit.score:.3f}", text)
    console.print()
    console.print(table)
    allowed = {question.owner, *("library" for _ in question.shareable)}
    return len(hits) > 0 and {hit.owner for hit in hits} <= allowed


LANES_SINCE = """
SELECT lane, count(*), count(*) FILTER (WHERE state = 'succeeded'),
       avg(extract(epoch FROM started_at - created_at))::float8,
       max(extract(epoch FROM started_at - created_at))::float8,
       avg(extract(epoch FROM finished_at - started_at))::float8,
       max(extract(epoch FROM finished_at - started_at))::float8
FROM vestry.jobs WHERE created_at >= %s GROUP BY lane ORDER BY lane"""


def show_lanes(conn: psycopg.Connection, since: object, console: Console) -> None:
    """Jobs enqueued since then, per lane, with their waiting and running times."""
    table = Table("lane", title="Jobs of this run, per lane", title_justify="left")
    for name in ("jobs", "succeeded", "wait mean", "wait max", "run mean", "run max"):
        table.add_column(name, justify="right")
    for lane, jobs, succeeded, *seconds in conn.execute(LANES_SINCE, [since]):
        times = ["-" if value is None else f"{value:.2f} s" for value in seconds]
        table.add_row(lane, str(jobs), str(succeeded), *times)
    console.print()
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
