"""Texts per second from enqueue to committed vectors, against a bare `encode` with the same threads.

Every round has an owner of its own, so that nothing is unchanged and all of it is embedded again.
The main figure is the private lane, whose vectors carry no HNSW index; the shareable lane, which
maintains one, is told apart.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.bare_encode import bare_encoder
from benchmarks.options import Options
from benchmarks.report import Outcome, paired_ratio
from benchmarks.stand import Stand, drained, stand, worker_settled
from inference.device.threads import default_threads
from vestry import Document, Embedding
from workers.stack.processes import BULK_NICE

AIM = 0.90
TEXTS = 2_000
PER_JOB = 64
WARM = 256
"""Enough for a worker to have learnt how fast it is."""


def run(options: Options) -> Outcome:
    """Alternate rounds of all sides."""
    outcome = Outcome("Embedding, from enqueue to committed vectors")
    threads = options.threads or default_threads()
    texts = read(options.texts, options.scaled(TEXTS))
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
        stand(settings, ["dispatcher", "reconciler", *workers]) as place,
        bare_encoder(threads, BULK_NICE) as encoder,
    ):
        for privacy in ("private", "shareable"):
            _vestry(place, texts[:WARM], f"warm-{privacy}", privacy, PER_JOB)
        encoder.seconds(texts[:WARM])
        for number in range(options.rounds):
            bare.append(len(texts) / encoder.seconds(texts))
            for name, (privacy, per_job) in sides.items():
                owner = f"{privacy}-{per_job}-{number}"
                rates[name].append(_vestry(place, texts, owner, privacy, per_job))
        worker_settled(place)
    outcome.rounds = {"bare encode texts/s": bare} | {f"{k} texts/s": v for k, v in rates.items()}
    words = sum(len(text.split()) for text in texts) / len(texts)
    outcome.add(
        "bare encode", median(bare), "texts/s",
        note=f"{len(texts):,} texts of {words:.0f} words in one call, {threads} threads, CPU",
    )  # fmt: skip
    for place_in_order, (name, values) in enumerate(rates.items()):
        outcome.add(name, median(values), "texts/s")
        aim = {"at_least": AIM} if place_in_order == 0 else {}
        outcome.add("  of bare encode", paired_ratio(values, bare), "x", **aim)
    return outcome


def read(path: Path, count: int) -> list[str]:
    """So many texts of a file of `REFERENCE text` lines, from its beginning.

    A file with fewer is read again, each text with a number before it: the worker computes equal
    texts of a batch once, and `encode` does not.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    texts = [text for line in lines if (text := line.partition(" ")[2])]
    return [
        texts[n] if n < len(texts) else f"{n // len(texts)}. {texts[n % len(texts)]}"
        for n in range(count)
    ]


def _vestry(place: Stand, texts: Sequence[str], owner: str, privacy: str, per_job: int) -> float:
    """Texts per second, from the first enqueue to the last commit."""
    begun = time.perf_counter()
    place.vestry.enqueue_many(
        place.conn,
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
    drained(place, f"{privacy}.bulk.gpu", within=900)
    took = time.perf_counter() - begun
    stored = place.one(f"SELECT count(*) FROM vestry.{privacy}_embeddings WHERE owner = %s", owner)
    if stored < len(texts):
        raise RuntimeError(f"{len(texts)} texts, but {stored} vectors")
    return len(texts) / took
