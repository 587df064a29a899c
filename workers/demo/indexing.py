"""Two people's diaries as private and 300 verses as shareable; then searches of them."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import psycopg
from rich.console import Console

from vestry import Document, Embedding, IndexResult, Result, Vestry
from workers.demo.report import PATIENCE_S, tabulate
from workers.home import CHECKOUT

SAMPLES = CHECKOUT / "samples"


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


def show(vestry: Vestry, conn: psycopg.Connection, console: Console) -> bool:
    """Index and search; whether every document was indexed and every search answered."""
    results = index(vestry, conn)
    show_index(results, console)
    found = [show_search(vestry, question, console) for question in QUESTIONS]
    return all(found) and not any(result.failed for result in results.values())


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


def show_index(results: dict[Collection, IndexResult], console: Console) -> None:
    """One line a collection, and whether anything had to be embedded."""
    numbers = ("documents", "chunks", "embedded", "unchanged")
    rows = [
        (c.source, c.owner, c.privacy, *(getattr(r, name) for name in numbers), len(r.failed))
        for c, r in results.items()
    ]
    columns = ("source", "owner", "privacy", *(f"#{name}" for name in numbers), "#failed")
    tabulate(console, "Indexed", columns, rows)
    documents = sum(result.documents for result in results.values())
    if documents == sum(result.unchanged for result in results.values()):
        console.print(f"Nothing was embedded again: all {documents} documents are unchanged.")


def show_search(vestry: Vestry, question: Question, console: Console) -> bool:
    """Search and print the hits; whether there were any, and nobody else's private ones."""
    hits = vestry.search(
        question.text,
        owner=question.owner,
        privacy="private",
        own_sources=["diary"],
        sources=question.shareable,
        limit=4,
    )
    where = " and ".join(("own diary", *question.shareable))
    rows = [
        (hit.owner, hit.date or hit.document, f"{hit.score:.3f}",
         textwrap.shorten(hit.text or "", 150, placeholder=" …"))
        for hit in hits
    ]  # fmt: skip
    title = f"“{question.text}”, asked by {question.owner}, in {where}"
    tabulate(console, title, ("owner", "date or reference", "#score", "text"), rows, lines=True)
    allowed = {question.owner, *("library" for _ in question.shareable)}
    return len(hits) > 0 and {hit.owner for hit in hits} <= allowed
