"""Search with a reranker against real tables: the routes that enable it, and deletion of content."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from vestry import AsyncVestry, Hits, Vestry
from vestry.crypto.owner_keys import OwnerKeys
from vestry.db.operations import execute
from vestry.search import pipeline
from vestry.search.vector_search import SearchRequest, candidates
from workers.stack.dev_stack import DevStack

TEXTS = {"near": "a river", "middle": "a king", "far": "some bread"}
VECTORS = {"near": "[1,0]", "middle": "[0.8,0.6]", "far": "[0,1]"}
ENSURE_SPACE = "SELECT vestry.ensure_space_v1(%s, %s, 'r', 2, '', '', true, 'float32', 'test')"


@pytest.fixture
def library(clean: DevStack) -> DevStack:
    """Three shareable documents of ann in a space of the model `tiny`."""
    with psycopg.connect(clean.superuser_url) as root:
        space = root.execute(ENSURE_SPACE, ["tiny-space", "tiny"]).fetchone()
        root.execute("INSERT INTO vestry.owners (owner) VALUES ('ann')")
        for name, text in TEXTS.items():
            row = root.execute(
                """INSERT INTO vestry.shareable_documents (id, owner, source, external_hash, detail)
                   VALUES (uuidv7(), 'ann', 'diary', sha256(%s), %s) RETURNING id""",
                [name.encode(), json.dumps({"id": name})],
            ).fetchone()
            assert row is not None
            root.execute(
                """INSERT INTO vestry.shareable_chunks
                   VALUES (%s, %s, 'ann', 0, 0, 10, ''::bytea, %s)""",
                [row[0], row[0], text],
            )
            root.execute(
                """INSERT INTO vestry.shareable_embeddings (chunk_id, space_id, owner, source, vector)
                   VALUES (%s, %s, 'ann', 'diary', %s)""",
                [row[0], space and space[0], VECTORS[name]],
            )
    return clean


def publish(stack: DevStack, *routes: tuple[str, str, str]) -> None:
    """Kind, privacy and model of routes for interactive requests of any task and tier."""
    with psycopg.connect(stack.superuser_url) as root:
        root.execute("TRUNCATE vestry.routes")
        for kind, privacy, model in routes:
            root.execute(
                """INSERT INTO vestry.routes
                   VALUES (%s, '', %s, 'interactive', 'adequate', '', 'gpu', %s)""",
                [kind, privacy, model],
            )


@contextmanager
def fake_worker(stack: DevStack, results: dict[str, Any]) -> Iterator[list[tuple[str, Any]]]:
    """Finish shareable jobs with a result by their kind; yields the recorded jobs."""
    jobs: list[tuple[str, Any]] = []
    stop = threading.Event()

    def work() -> None:
        with psycopg.connect(stack.superuser_url, autocommit=True) as root:
            while not stop.wait(0.005):
                row = root.execute(
                    """SELECT id, kind, body FROM vestry.jobs
                       JOIN vestry.shareable_payloads ON job_id = id WHERE state = 'queued'"""
                ).fetchone()
                if row is None or row[1] not in results:
                    continue
                job, kind, body = row
                jobs.append((kind, json.loads(body)))
                root.execute(
                    "INSERT INTO vestry.shareable_results (job_id, owner, body, expires_at) "
                    "VALUES (%s, 'ann', %s, now())",
                    [job, json.dumps(results[kind])],
                )
                root.execute("DELETE FROM vestry.shareable_payloads WHERE job_id = %s", [job])
                root.execute(
                    """UPDATE vestry.jobs SET state = 'running', start_tag = NULL,
                       lease_id = gen_random_uuid() WHERE id = %s""",
                    [job],
                )
                root.execute(
                    """UPDATE vestry.jobs SET state = 'succeeded', lease_id = NULL,
                       finished_at = now() WHERE id = %s""",
                    [job],
                )
                root.execute("SELECT pg_notify('vestry_done', %s)", [str(job)])

    worker = threading.Thread(target=work)
    worker.start()
    try:
        yield jobs
    finally:
        stop.set()
        worker.join()


EMBEDDED = {"vectors": [[1, 0]], "space": "tiny-space"}
RANKING = {
    "ranking": [{"index": 2, "score": 8.5}, {"index": 0, "score": 1}, {"index": 1, "score": -2}]
}
SEARCH: dict[str, Any] = {"owner": "ann", "privacy": "shareable", "timeout": 20}


def search(stack: DevStack, **options: Any) -> Hits:
    with Vestry(stack.database_url("vestry_producer"), stack.keyring) as vestry:
        return vestry.search("q", **SEARCH | options)


def documents(hits: Hits) -> list[str]:
    return [hit.document for hit in hits]


@pytest.mark.parametrize(
    ("routes", "enabled"),
    [
        ([], False),
        ([("rerank", "shareable", "cross-encoder")], True),
        ([("rerank", "private", "cross-encoder")], False),
        # An embedding model would repeat the similarity.
        ([("rerank", "shareable", "tiny")], False),
        ([("rerank", "shareable", "other"), ("embedding", "shareable", "other")], False),
    ],
)
def test_published_route_to_a_reranker_enables_reranking(
    library: DevStack, routes: list[tuple[str, str, str]], enabled: bool
) -> None:
    publish(library, *routes)
    request = SearchRequest("ann", "shareable", limit=1)

    def find(rerank: bool | None) -> tuple[Hits, bool]:
        with psycopg.connect(library.database_url("vestry_producer")) as conn:
            return execute(
                conn, candidates(request, [1, 0], "tiny-space", OwnerKeys(None), rerank=rerank)
            )

    hits, to_rerank = find(None)
    assert to_rerank is enabled
    # More hits than the limit, for the reranker to choose from.
    assert len(hits) == (3 if enabled else 1)
    assert [find(rerank)[1] for rerank in (True, False)] == [True, False]


def test_both_clients_have_their_hits_reranked_and_nothing_is_kept(library: DevStack) -> None:
    publish(library, ("rerank", "shareable", "cross-encoder"))
    with fake_worker(library, {"embedding": EMBEDDED, "rerank": RANKING}) as jobs:
        hits = search(library, limit=2)
        assert documents(hits) == ["far", "near"]
        assert [hit.rerank_score for hit in hits] == [8.5, 1]
        assert hits[0].score == pytest.approx(0, abs=1e-3)
        assert (hits.reranked, hits.degraded) == (True, False)
        assert hits.rerank_s > 0
        assert jobs[1] == (
            "rerank",
            {"query": "q", "passages": list(TEXTS.values()), "limit": None},
        )

        async def search_asynchronously() -> Hits:
            url, ring = library.database_url("vestry_producer"), library.keyring
            async with AsyncVestry(url, ring) as vestry:
                return await vestry.search("q", **SEARCH)

        assert documents(asyncio.run(search_asynchronously())) == ["far", "near", "middle"]
        assert documents(search(library, rerank=False)) == ["near", "middle", "far"]
    with psycopg.connect(library.superuser_url) as root:
        for table in ("shareable_results", "shareable_payloads"):
            assert root.execute(f"SELECT count(*) FROM vestry.{table}").fetchone() == (0,)  # type: ignore[call-overload]


def test_slow_reranker_degrades_the_search_and_its_job_is_cancelled(
    library: DevStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "RERANK_TIMEOUT_S", 0.3)
    with fake_worker(library, {"embedding": EMBEDDED}):
        began = time.monotonic()
        hits = search(library, rerank=True)
    assert documents(hits) == ["near", "middle", "far"]
    assert (hits.degraded, hits.reason) == (True, pipeline.RERANKER_TOO_SLOW)
    assert time.monotonic() - began < 9
    with psycopg.connect(library.superuser_url) as root:
        states = dict(root.execute("SELECT kind, state FROM vestry.jobs").fetchall())
        payloads = root.execute("SELECT count(*) FROM vestry.shareable_payloads").fetchone()
    assert states == {"embedding": "succeeded", "rerank": "cancelled"}
    assert payloads == (0,)
