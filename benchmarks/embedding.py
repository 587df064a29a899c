"""Texts per second from enqueue to committed vectors, against a bare `encode` with the same threads.

Each round has its own owner, so that no document is unchanged and every text is embedded. The main
figure is the private lane, whose vectors have no HNSW index; the shareable lane, whose vectors have
one, is measured separately.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.bare_encode import bare_encoder
from benchmarks.bench_stack import BenchStack, bench_stack, check_all_succeeded, wait_until_drained
from benchmarks.options import Options
from benchmarks.report import BenchmarkResult, median_ratio
from inference.device.threads import default_threads
from vestry import Document, Embedding
from workers.stack.embedded_stack import BULK_NICE

AIM = 0.90
TEXTS = 2_000
PER_JOB = 64
WARM_UP_TEXTS = 256
"""Enough for a worker to adapt its batch size."""


def run(options: Options) -> BenchmarkResult:
    """Alternate rounds of each side."""
    result = BenchmarkResult("Embedding, from enqueue to committed vectors")
    threads = options.threads or default_threads()
    texts = read_texts(options.texts, options.scaled(TEXTS))
    sides = {
        f"private, {PER_JOB} texts a job": ("private", PER_JOB),
        "private, 1 text a job": ("private", 1),
        f"shareable with HNSW, {PER_JOB} texts a job": ("shareable", PER_JOB),
    }
    bare: list[float] = []
    rates: dict[str, list[float]] = {name: [] for name in sides}
    settings = {"VESTRY_THREADS": str(threads), "VESTRY_DEVICE": "cpu"}
    workers = ["private-bulk-gpu", "shareable-bulk-gpu"]
    with (
        bench_stack(settings, ["dispatcher", "reconciler", *workers]) as stack,
        bare_encoder(threads, BULK_NICE) as encoder,
    ):
        for privacy in ("private", "shareable"):
            _vestry(stack, texts[:WARM_UP_TEXTS], f"warm-{privacy}", privacy, PER_JOB)
        encoder.seconds(texts[:WARM_UP_TEXTS])
        for number in range(options.rounds):
            bare.append(len(texts) / encoder.seconds(texts))
            for name, (privacy, per_job) in sides.items():
                owner = f"{privacy}-{per_job}-{number}"
                rates[name].append(_vestry(stack, texts, owner, privacy, per_job))
        check_all_succeeded(stack)
    result.rounds = {"bare encode texts/s": bare} | {f"{k} texts/s": v for k, v in rates.items()}
    words = sum(len(text.split()) for text in texts) / len(texts)
    result.add(
        "bare encode", median(bare), "texts/s",
        note=f"{len(texts):,} texts of {words:.0f} words in one call, {threads} threads, CPU",
    )  # fmt: skip
    for position, (name, values) in enumerate(rates.items()):
        result.add(name, median(values), "texts/s")
        aim = {"at_least": AIM} if position == 0 else {}
        result.add("  of bare encode", median_ratio(values, bare), "x", **aim)
    return result


def read_texts(path: Path, count: int) -> list[str]:
    """The first `count` texts of a file of `REFERENCE text` lines.

    A file with fewer texts is repeated, with a number before each text: the worker embeds equal texts
    of a batch once, and `encode` does not.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    texts = [text for line in lines if (text := line.partition(" ")[2])]
    return [
        texts[n] if n < len(texts) else f"{n // len(texts)}. {texts[n % len(texts)]}"
        for n in range(count)
    ]


def _vestry(
    stack: BenchStack, texts: Sequence[str], owner: str, privacy: str, per_job: int
) -> float:
    """Texts per second, from the first enqueue to the last commit."""
    started = time.perf_counter()
    stack.vestry.enqueue_many(
        stack.conn,
        (
            Embedding(
                documents=[
                    Document(text, id=str(start + offset))
                    for offset, text in enumerate(texts[start : start + per_job])
                ],
                source="verses",
            )
            for start in range(0, len(texts), per_job)
        ),
        owner=owner,
        privacy=privacy,
    )
    wait_until_drained(stack, f"{privacy}.bulk.gpu", within=900)
    seconds = time.perf_counter() - started
    stored = stack.scalar(
        f"SELECT count(*) FROM vestry.{privacy}_embeddings WHERE owner = %s", owner
    )
    if stored < len(texts):
        raise RuntimeError(f"{len(texts)} texts, but {stored} vectors")
    return len(texts) / seconds
