"""A scanned page, diary entries by topic, languages, references, verses ranked, and an answer."""

from __future__ import annotations

import json
import textwrap
from dataclasses import dataclass

import psycopg
from rich.console import Console

from vestry import (
    UPSTREAM,
    Classification,
    ClassificationResult,
    Document,
    Embedding,
    Flow,
    Generation,
    GenerationResult,
    Grounding,
    JobRef,
    Label,
    Ocr,
    OcrResult,
    Rerank,
    RerankResult,
    Vestry,
)
from vestry.jobs.base import JobRequest
from workers.demo.indexing import SAMPLES
from workers.demo.report import PATIENCE_S, tabulate

OWNER = "samuel-1660"
TOPICS = (
    Label("worship", "going to church, a sermon, a prayer, a psalm, a feast of the church"),
    Label("office", "work at the office, the navy, ships, accounts, letters and business"),
    Label("home", "wife, servants, the house, its repairs, and household matters"),
    Label("pleasure", "a play, music, singing, wine, cards, a walk, dining with friends"),
    Label("health", "sickness, pain, a cold, physic and doctors, lying in bed ill"),
)
ENTRIES = 6
"""Diary entries classified by topic."""
LANGUAGES = 5
"""Sentences whose language is told."""
REFERENCES = ("1 Cor 13:4-7", "Hezekiah 3:1", "Ps 151:1")
QUERY = "Who made the heavens?"
QUESTION = "What did I do on Sundays?"


@dataclass(frozen=True)
class Asked:
    """Jobs that were enqueued, to be waited for later."""

    scan: JobRef
    texts: list[tuple[str, str, JobRef]]
    """What for, the text, the job."""
    passages: list[str]
    ranking: JobRef


def enqueue(vestry: Vestry, conn: psycopg.Connection) -> Asked:
    """All of it in one transaction: it exists as a whole or not at all."""

    def private(job: JobRequest, task: str | None = None, *then: JobRequest | Flow) -> JobRef:
        return vestry.enqueue(conn, job, owner=OWNER, privacy="private", task=task, then=then)

    def shareable(job: JobRequest, task: str | None = None) -> JobRef:
        return vestry.enqueue(conn, job, owner="library", privacy="shareable", task=task)

    entries = [json.loads(line)["text"] for line in _lines("diary_1660.jsonl")[:ENTRIES]]
    sentences = [json.loads(line) for line in _lines("sentences.jsonl")]
    firsts = [one["text"] for one in sentences if one["sentence"] == 1][:LANGUAGES]
    verses = [line.split(" ", 1)[1] for line in _lines("verses.txt")]
    passages = verses[:3] + verses[-3:]
    index = Embedding(documents=[Document(UPSTREAM, id="phototest")], source="scans")
    with conn.transaction():
        return Asked(
            scan=private(
                Ocr(SAMPLES / "phototest.tif"),
                None,
                index,
                Flow(Classification(UPSTREAM), task="language"),
            ),
            texts=[
                *(
                    ("topic", text, private(Classification(text, TOPICS), "topic"))
                    for text in entries
                ),
                *(
                    ("language", text, shareable(Classification(text), "language"))
                    for text in firsts
                ),
                *(
                    ("reference", text, shareable(Classification(text), "passage-reference"))
                    for text in REFERENCES
                ),
            ],
            passages=passages,
            ranking=shareable(Rerank(QUERY, passages)),
        )


def show(vestry: Vestry, asked: Asked, console: Console) -> bool:
    """Wait for everything and print it; whether each said what it should."""
    well = _show_scan(vestry, asked.scan, console)
    classified: list[tuple[str, ...]] = []
    for task, text, job in asked.texts:
        result = vestry.wait(job, PATIENCE_S)
        assert isinstance(result, ClassificationResult)  # noqa: S101 - as its job
        best = result.labels[0]
        classified.append((task, _short(text, 66), best.label, f"{best.score:.2f}"))
    tabulate(console, "Classified", ("task", "text", "label", "#score"), classified)
    ranking = vestry.wait(asked.ranking, PATIENCE_S)
    assert isinstance(ranking, RerankResult)  # noqa: S101 - as its job
    best_first = [
        (f"{one.score:.3f}", _short(asked.passages[one.index], 80)) for one in ranking.ranking
    ]
    tabulate(console, f"Reranked for “{QUERY}”", ("#score", "verse"), best_first[:3])
    return well


def _show_scan(vestry: Vestry, scan: JobRef, console: Console) -> bool:
    read = vestry.wait(scan, PATIENCE_S)
    _, language = (vestry.wait(job, PATIENCE_S) for job in scan.then)
    assert isinstance(read, OcrResult)  # noqa: S101 - what an Ocr gives
    assert isinstance(language, ClassificationResult)  # noqa: S101 - as its job
    hits = vestry.search("a brown dog", owner=OWNER, privacy="private", own_sources=["scans"])
    found = (hits[0].text if hits else None) or "nothing"
    rows = [
        ("ocr", f"{len(read.pages)} page, confidence {read.pages[0].confidence:.0%}",
         _short(read.text, 60)),
        ("embedding", "found by “a brown dog”", _short(found, 60)),
        ("classification", "its language", str(language.label)),
    ]  # fmt: skip
    tabulate(console, "A scanned page, read, indexed and classified", ("kind", "", "result"), rows)
    return bool(hits) and language.label == "en" and "quick brown dog" in read.text


def show_answer(vestry: Vestry, conn: psycopg.Connection, console: Console) -> bool:
    """A private question answered from the owner's own diary by the local model, with its receipt."""
    job = vestry.enqueue(
        conn,
        Generation(QUESTION, max_tokens=160, seed=7, temperature=0.0,
                   grounding=Grounding(own_sources=["diary"], limit=3)),
        owner=OWNER,
        privacy="private",
        latency="interactive",
    )  # fmt: skip
    answer = vestry.wait(job, PATIENCE_S)
    assert isinstance(answer, GenerationResult)  # noqa: S101 - as its job
    shown = [("answer", _short(answer.text, 300))]
    shown += [(f"passage {c.passage}, {c.date}", _short(c.text, 200)) for c in answer.citations]
    tabulate(console, f"“{QUESTION}”, asked by {OWNER}", ("", "text"), shown, lines=True)
    console.print("The packaged model is small: it shows that the path works, not what is true.")
    receipts = vestry.receipts(job)
    columns = (
        "#attempt", "outcome", "model", "backend", "where", "#tokens in", "#tokens out", "degraded",
    )  # fmt: skip
    rows = [
        (r.attempt, r.outcome, r.served.model, r.served.backend, r.locality, r.input_tokens,
         r.output_tokens, "yes" if r.degraded else "no")
        for r in receipts
    ]  # fmt: skip
    tabulate(console, "Its receipts", columns, rows)
    return bool(answer.citations) and all(r.locality == "local" for r in receipts)


def _lines(name: str) -> list[str]:
    return (SAMPLES / name).read_text(encoding="utf-8").splitlines()


def _short(text: str, characters: int) -> str:
    return textwrap.shorten(text, characters, placeholder=" …")
