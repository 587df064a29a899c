"""Cost of sealing: its share of the CPU time of bulk indexing of private documents.

The worker, with the real model, and its producer run in this process. Each of their calls that seals,
opens or digests content is timed by the CPU clock of its thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import psycopg

from benchmarks.embedding import read_texts
from benchmarks.options import Options
from benchmarks.report import BenchmarkResult
from inference.device.threads import default_threads
from vestry import Document, Embedding, Vestry
from vestry.crypto.envelope import OwnerKey
from workers.app import make_app
from workers.celery_integration.worker_lifecycle import WorkerLifecycle
from workers.settings import Settings
from workers.stack.dev_stack import DevStack
from workers.stack.server_dir import remove

AIM = 0.05
TEXTS = 2_000
PER_JOB = 64
CALLS = ("seal", "open", "digest")


def run(options: Options) -> BenchmarkResult:
    """Index once, after a warm-up that is not measured."""
    result = BenchmarkResult("Sealing, of the CPU time of indexing in bulk")
    texts = read_texts(options.texts, options.scaled(TEXTS))
    with TemporaryDirectory(prefix="vestry-bench-") as directory:
        home = Path(directory) / "home"
        try:
            with DevStack(home) as stack, _worker(stack, options.threads) as index:
                index(texts[:256], "warm")
                with _measured_calls() as cpu_s:
                    before = time.process_time()
                    index(texts, "measured")
                    total = time.process_time() - before
        finally:
            remove(home)
    share = sum(cpu_s.values()) / total
    result.rounds = {"CPU s": [total], **{f"{name} CPU s": [cpu_s[name]] for name in CALLS}}
    shares = ", ".join(f"{name} {cpu_s[name] / total:.2%}" for name in CALLS)
    result.add(
        "sealing, opening and digests", 100 * share, "% of CPU",
        note=f"{len(texts):,} texts, {total:.1f} s of CPU in all; {shares}; aim below {AIM:.0%}",
    )  # fmt: skip
    return result


@contextmanager
def _worker(stack: DevStack, threads: int) -> Iterator[Callable[[list[str], str], None]]:
    """A private bulk worker in this process; yields a function that indexes texts for an owner."""
    settings = Settings(
        database_url=stack.database_url("vestry_private"),
        broker_url=stack.broker_url("private"),
        keyring_file=stack.keyring,
        privacy="private",
        lanes=("private.bulk.gpu",),
        threads=threads or default_threads(),
        device="cpu",
    )
    life = WorkerLifecycle(make_app(settings.broker, "private"), settings)
    life.init(SimpleNamespace(hostname="bench"))
    life.ready()
    url = stack.database_url("vestry_producer")
    with Vestry(url, stack.keyring) as vestry, psycopg.connect(url) as conn:

        def index(texts: list[str], owner: str) -> None:
            documents = [Document(text, id=str(number)) for number, text in enumerate(texts)]
            jobs = [
                Embedding(documents=documents[i : i + PER_JOB], source="verses")
                for i in range(0, len(documents), PER_JOB)
            ]
            enqueued = vestry.enqueue_many(conn, jobs, owner=owner, privacy="private")
            conn.commit()
            for job in enqueued:
                vestry.wait(job, timeout=600)

        yield index
    life.shutting_down()
    life.shutdown()


@contextmanager
def _measured_calls() -> Iterator[dict[str, float]]:
    """Sum the CPU seconds of each of CALLS over all threads."""
    cpu_s, lock = dict.fromkeys(CALLS, 0.0), threading.Lock()

    def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def run_timed(*args: Any) -> Any:
            started = time.thread_time()
            try:
                return call(*args)
            finally:
                with lock:
                    cpu_s[name] += time.thread_time() - started

        return run_timed

    with (
        patch.object(OwnerKey, "seal", timed("seal", OwnerKey.seal)),
        patch.object(OwnerKey, "open", timed("open", OwnerKey.open)),
        patch.object(OwnerKey, "digest", timed("digest", OwnerKey.digest)),
    ):
        yield cpu_s
