"""Every kind of job but plain embedding: OCR with a flow, classification, reranking, generation."""

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
from workers.demo.report import JOB_TIMEOUT_S, print_table

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
"""Sentences classified by language."""
REFERENCES = ("1 Cor 13:4-7", "Hezekiah 3:1", "Ps 151:1")
QUERY = "Who made the heavens?"
QUESTION = "What did I do on Sundays?"


@dataclass(frozen=True)
class DemoJobs:
    """The enqueued jobs.

    Attributes:
        scan: OCR of a page, with the jobs that follow it.
        classifications: task, text and job.
        passages: texts that `ranking` ranks.
        ranking: the reranking job.
    """

    scan: JobRef
    classifications: list[tuple[str, str, JobRef]]
    passages: list[str]
    ranking: JobRef


def enqueue_jobs(vestry: Vestry, conn: psycopg.Connection) -> DemoJobs:
    """Enqueue every job in one transaction: all of them exist, or none."""

    def private(job: JobRequest, task: str | None = None, *then: JobRequest | Flow) -> JobRef:
        return vestry.enqueue(conn, job, owner=OWNER, privacy="private", task=task, then=then)

    def shareable(job: JobRequest, task: str | None = None) -> JobRef:
        return vestry.enqueue(conn, job, owner="library", privacy="shareable", task=task)

    entries = [json.loads(line)["text"] for line in _sample_lines("diary_1660.jsonl")[:ENTRIES]]
    rows = [json.loads(line) for line in _sample_lines("sentences.jsonl")]
    sentences = [row["text"] for row in rows if row["sentence"] == 1][:LANGUAGES]
    verses = [line.split(" ", 1)[1] for line in _sample_lines("verses.txt")]
    passages = verses[:3] + verses[-3:]
    index = Embedding(documents=[Document(UPSTREAM, id="phototest")], source="scans")
    with conn.transaction():
        return DemoJobs(
            scan=private(
                Ocr(SAMPLES / "phototest.tif"),
                None,
                index,
                Flow(Classification(UPSTREAM), task="language"),
            ),
            classifications=[
                *(
                    ("topic", text, private(Classification(text, TOPICS), "topic"))
                    for text in entries
                ),
                *(
                    ("language", text, shareable(Classification(text), "language"))
                    for text in sentences
                ),
                *(
                    ("reference", text, shareable(Classification(text), "passage-reference"))
                    for text in REFERENCES
                ),
            ],
            passages=passages,
            ranking=shareable(Rerank(QUERY, passages)),
        )


def print_results(vestry: Vestry, jobs: DemoJobs, console: Console) -> bool:
    """Wait for the jobs and print their results; returns whether the scan's are as expected."""
    scan_correct = _print_scan(vestry, jobs.scan, console)
    classified: list[tuple[str, ...]] = []
    for task, text, job in jobs.classifications:
        result = vestry.wait(job, JOB_TIMEOUT_S)
        assert isinstance(result, ClassificationResult)  # noqa: S101 - the kind of its job
        best = result.labels[0]
        classified.append((task, _short(text, 66), best.label, f"{best.score:.2f}"))
    print_table(console, "Classified", ("task", "text", "label", "#score"), classified)
    reranked = vestry.wait(jobs.ranking, JOB_TIMEOUT_S)
    assert isinstance(reranked, RerankResult)  # noqa: S101 - the kind of its job
    best_first = [
        (f"{ranked.score:.3f}", _short(jobs.passages[ranked.index], 80))
        for ranked in reranked.ranking
    ]
    print_table(console, f"Reranked for “{QUERY}”", ("#score", "verse"), best_first[:3])
    return scan_correct


def _print_scan(vestry: Vestry, scan: JobRef, console: Console) -> bool:
    read = vestry.wait(scan, JOB_TIMEOUT_S)
    _, language = (vestry.wait(job, JOB_TIMEOUT_S) for job in scan.then)
    assert isinstance(read, OcrResult)  # noqa: S101 - the kind of its job
    assert isinstance(language, ClassificationResult)  # noqa: S101 - the kind of its job
    hits = vestry.search("a brown dog", owner=OWNER, privacy="private", own_sources=["scans"])
    best_hit = (hits[0].text if hits else None) or "nothing"
    rows = [
        ("ocr", f"{len(read.pages)} page, confidence {read.pages[0].confidence:.0%}",
         _short(read.text, 60)),
        ("embedding", "found by “a brown dog”", _short(best_hit, 60)),
        ("classification", "its language", str(language.label)),
    ]  # fmt: skip
    title = "A scanned page, read, indexed and classified"
    print_table(console, title, ("kind", "", "result"), rows)
    return bool(hits) and language.label == "en" and "quick brown dog" in read.text


def answer_question(vestry: Vestry, conn: psycopg.Connection, console: Console) -> bool:
    """Answer a private question from the owner's diary; print the answer and its receipts.

    Returns:
        Whether the answer cites passages and only local models were used.
    """
    job = vestry.enqueue(
        conn,
        Generation(QUESTION, max_tokens=160, seed=7, temperature=0.0,
                   grounding=Grounding(own_sources=["diary"], limit=3)),
        owner=OWNER,
        privacy="private",
        latency="interactive",
    )  # fmt: skip
    answer = vestry.wait(job, JOB_TIMEOUT_S)
    assert isinstance(answer, GenerationResult)  # noqa: S101 - the kind of its job
    cells = [("answer", _short(answer.text, 300))]
    cells += [(f"passage {c.passage}, {c.date}", _short(c.text, 200)) for c in answer.citations]
    print_table(console, f"“{QUESTION}”, asked by {OWNER}", ("", "text"), cells, lines=True)
    console.print("The packaged model is small: its answer shows that the path works, not facts.")
    receipts = vestry.receipts(job)
    columns = (
        "#attempt", "outcome", "model", "backend", "where", "#tokens in", "#tokens out", "degraded",
    )  # fmt: skip
    rows = [
        (r.attempt, r.outcome, r.served.model, r.served.backend, r.locality, r.input_tokens,
         r.output_tokens, "yes" if r.degraded else "no")
        for r in receipts
    ]  # fmt: skip
    print_table(console, "Its receipts", columns, rows)
    return bool(answer.citations) and all(r.locality == "local" for r in receipts)


def _sample_lines(name: str) -> list[str]:
    return (SAMPLES / name).read_text(encoding="utf-8").splitlines()


def _short(text: str, characters: int) -> str:
    return textwrap.shorten(text, characters, placeholder=" …")
