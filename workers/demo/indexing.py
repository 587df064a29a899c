"""Index two owners' diaries as private and 300 verses as shareable, then search them."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import psycopg
from rich.console import Console

from vestry import Document, Embedding, IndexResult, Result, Vestry
from workers.demo.report import JOB_TIMEOUT_S, print_table
from workers.home import CHECKOUT

SAMPLES = CHECKOUT / "samples"


@dataclass(frozen=True)
class Collection:
    """One file of documents, with the owner and privacy class under which it is indexed."""

    file: str
    source: str
    owner: str
    privacy: str
    documents_per_job: int


@dataclass(frozen=True)
class SampleQuery:
    """One search of an owner's diary and of shareable sources."""

    text: str
    owner: str
    shareable: tuple[str, ...] = ()


COLLECTIONS = (
    Collection("diary_1660.jsonl", "diary", "samuel-1660", "private", 11),
    Collection("diary_1663.jsonl", "diary", "samuel-1663", "private", 11),
    Collection("verses.txt", "kjv", "library", "shareable", 50),
)
QUERIES = (
    SampleQuery("a sermon heard in church", "samuel-1660"),
    SampleQuery("the dancing master teaching my wife to dance", "samuel-1663"),
    SampleQuery("sleeping badly at night", "samuel-1660", ("kjv",)),
)


def index_and_search(vestry: Vestry, conn: psycopg.Connection, console: Console) -> bool:
    """Index and search; returns whether every document was indexed and every search had hits."""
    results = index_collections(vestry, conn)
    print_index_results(results, console)
    searches = [search(vestry, query, console) for query in QUERIES]
    return all(searches) and not any(result.failed for result in results.values())


def read_documents(collection: Collection) -> Iterator[Document]:
    """The documents of a file of JSON Lines or `REFERENCE text` lines."""
    for line in (SAMPLES / collection.file).read_text(encoding="utf-8").splitlines():
        if collection.file.endswith(".jsonl"):
            entry = json.loads(line)
            yield Document(entry["text"], id=entry["id"], date=entry["date"])
        else:
            reference, text = line.split(" ", 1)
            yield Document(text, id=reference)


def index_collections(vestry: Vestry, conn: psycopg.Connection) -> dict[Collection, IndexResult]:
    """Enqueue each collection in its own transaction, then wait for all of them."""
    jobs = {}
    for collection in COLLECTIONS:
        documents = list(read_documents(collection))
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
        collection: sum_results([vestry.wait(job, JOB_TIMEOUT_S) for job in enqueued])
        for collection, enqueued in jobs.items()
    }


def sum_results(results: Sequence[Result]) -> IndexResult:
    """The sum of the results of a collection's jobs."""
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


def print_index_results(results: dict[Collection, IndexResult], console: Console) -> None:
    """Print a row per collection, and a note if nothing had to be embedded."""
    numbers = ("documents", "chunks", "embedded", "unchanged")
    rows = [
        (c.source, c.owner, c.privacy, *(getattr(r, name) for name in numbers), len(r.failed))
        for c, r in results.items()
    ]
    columns = ("source", "owner", "privacy", *(f"#{name}" for name in numbers), "#failed")
    print_table(console, "Indexed", columns, rows)
    documents = sum(result.documents for result in results.values())
    if documents == sum(result.unchanged for result in results.values()):
        console.print(f"Nothing was embedded: all {documents} documents are unchanged.")


def search(vestry: Vestry, query: SampleQuery, console: Console) -> bool:
    """Search and print the hits; returns whether there are hits, and no other owner's private ones."""
    hits = vestry.search(
        query.text,
        owner=query.owner,
        privacy="private",
        own_sources=["diary"],
        sources=query.shareable,
        limit=4,
    )
    where = " and ".join(("own diary", *query.shareable))
    rows = [
        (hit.owner, hit.date or hit.document, f"{hit.score:.3f}",
         textwrap.shorten(hit.text or "", 150, placeholder=" …"))
        for hit in hits
    ]  # fmt: skip
    title = f"“{query.text}”, asked by {query.owner}, in {where}"
    print_table(console, title, ("owner", "date or reference", "#score", "text"), rows, lines=True)
    allowed = {query.owner, *("library" for _ in query.shareable)}
    return len(hits) > 0 and {hit.owner for hit in hits} <= allowed
