"""Search against real pgvector: recall, isolation of owners, and deletion of queries."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from statistics import fmean
from typing import Any

import numpy as np
import psycopg
import pytest

from benchmarks import search
from benchmarks.search import DIM, ENSURE_SPACE, LARGE_SPACE, QUERIES, SPACE, Library
from tests.cluster_template import migrated_home
from tests.quick_stack import quick_servers
from tests.run_dir import timed_start
from vestry import (
    InvalidInput,
    KeyRing,
    UnknownSpace,
    Vestry,
    WaitTimeout,
    client,
)
from vestry.crypto.envelope import PAYLOAD, RESULT
from vestry.db import operations
from vestry.search import vector_search
from workers.stack.dev_stack import DevStack

ROWS = 10_000
"""A tenth of `make bench`'s rows; the search thresholds are scaled to match."""


@pytest.fixture(scope="module")
def library() -> Iterator[Library]:
    """A library in separate servers: other tests empty the tables of the shared ones."""
    with pytest.MonkeyPatch.context() as patch:
        for threshold in ("EXACT_ROWS", "EXACT_FILTERED_ROWS"):
            scaled = getattr(vector_search, threshold) * ROWS // search.ROWS
            patch.setattr(vector_search, threshold, scaled)
        with migrated_home() as home, quick_servers(home) as stack:
            with timed_start("the library of test_search"):
                built = Library.build(stack, ROWS)
            yield built


def client_of(stack: DevStack) -> Vestry:
    return Vestry(stack.database_url("vestry_producer"), stack.keyring)


@pytest.fixture
def vestry(library: Library) -> Iterator[Vestry]:
    with library.client() as producer:
        yield producer


@pytest.mark.parametrize(("privacy", "owner"), [("private", "owner-7"), ("shareable", "library-7")])
def test_recall_for_an_owner_of_one_percent(
    library: Library, vestry: Vestry, privacy: str, owner: str, record_property: Any
) -> None:
    # Given an owner with one percent of the documents, when the owner searches
    results, seconds = library.search(vestry, owner=owner, privacy=privacy)
    # Then the ten nearest are found, best first, with text and scores
    assert library.recall(results, library.owners == 7) >= 0.99
    for query, hits in enumerate(results):
        assert len(hits) == 10
        assert {hit.owner for hit in hits} == {owner}
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        best = int(hits[0].document)
        assert hits[0].score == pytest.approx(
            float(library.vectors[best] @ library.queries[query]), abs=2e-3
        )
    if privacy == "private":
        assert results[0][0].text == f"text {results[0][0].document}"
        assert results[0][0].date == "1660"
    record_property("seconds_a_search", fmean(seconds))
    assert fmean(seconds) < 0.5


@pytest.mark.parametrize("source", ["small", "middle"])
def test_shareable_source_among_others_is_searched_exactly(
    library: Library, vestry: Vestry, source: str
) -> None:
    results, _ = library.search(vestry, owner="stranger", privacy="shareable", sources=[source])
    assert library.recall(results, library.sources == source) >= 0.99
    assert {hit.source for hits in results for hit in hits} == {source}


def test_source_with_most_of_a_space_is_searched_by_index(
    library: Library, vestry: Vestry, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a selection too large to compare row by row
    chosen = (library.sources == "big") & (np.arange(ROWS) < library.large_rows)
    assert chosen.sum() > vector_search.EXACT_ROWS
    options: dict[str, Any] = {"owner": "stranger", "privacy": "shareable", "sources": ["big"]}
    # When it is searched, then the index is used, with high recall
    plans = spy_on_plans(monkeypatch)
    results, _ = library.search(vestry, space=LARGE_SPACE, **options)
    assert sum("_hnsw" in plan for plan in plans) == QUERIES
    assert library.recall(results, chosen) >= 0.95
    # And an exact search does not use it
    plans.clear()
    library.search(vestry, space=LARGE_SPACE, **{**options, "sources": ["small"]})
    assert plans
    assert not any("_hnsw" in plan for plan in plans)


def spy_on_plans(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the plan of every vector comparison from now on."""
    plans: list[str] = []
    execute = operations.execute

    def run(conn: psycopg.Connection[Any], operation: Any) -> Any:
        def explained() -> Any:
            rows: Any = None
            while True:
                try:
                    query = operation.send(rows)
                except StopIteration as end:
                    return end.value
                text = query.text if isinstance(query.text, str) else query.text.as_string()
                if "<=>" in text:
                    plan = yield operations.Query(f"EXPLAIN {text}", query.params)
                    plans.append(str(plan))
                rows = yield query

        return execute(conn, explained())

    monkeypatch.setattr(client, "execute", run)
    return plans


def test_own_sources_and_shared_ones_are_searched_together(
    library: Library, vestry: Vestry
) -> None:
    results, _ = library.search(
        vestry,
        owner="owner-3",
        privacy="private",
        own_sources=["big"],
        sources=["small"],
        limit=10,
    )
    own = (library.owners == 3) & (library.sources == "big")
    assert library.recall(results, own | (library.sources == "small")) >= 0.99
    origins = {(hit.owner == "owner-3", hit.source) for hits in results for hit in hits}
    assert origins == {(True, "big"), (False, "small")}


def test_another_owners_private_rows_are_never_seen(library: Library, vestry: Vestry) -> None:
    for owner in ("owner-8", "stranger", "owner-7' OR true --", "{owner-7,owner-8}"):
        results, _ = library.search(vestry, owner=owner, privacy="private")
        assert {hit.owner for hits in results for hit in hits} <= {owner}
        assert bool(results[0]) is (owner == "owner-8")
    # Nor by the producer's login without an owner context, or with another one
    url = library.stack.database_url("vestry_producer")
    for table in ("embeddings", "chunks", "documents"):
        with psycopg.connect(url) as conn:
            bare = conn.execute(f"SELECT count(*) FROM vestry.private_{table}").fetchone()  # type: ignore[call-overload]
            assert bare == (0,)
            conn.execute("SELECT set_config('vestry.owners', '{owner-8}', true)")
            seen = conn.execute(f"SELECT DISTINCT owner FROM vestry.private_{table}").fetchall()  # type: ignore[call-overload]
            assert seen == [("owner-8",)]


@pytest.mark.slow
def test_invalid_searches_raise(library: Library, vestry: Vestry) -> None:
    valid = library.queries[0].tolist()
    common: dict[str, Any] = {"owner": "owner-1", "privacy": "private"}
    with pytest.raises(UnknownSpace):
        vestry.search_by_vector(valid, space="unknown", **common)
    with pytest.raises(UnknownSpace):
        vestry.search("x", space="unknown", **common)
    wrong_vectors = (valid[:-1], [float("nan")] * DIM, [float("inf"), *valid[1:]], [])
    for vector in wrong_vectors:
        with pytest.raises(InvalidInput) as caught:
            vestry.search_by_vector(vector, space=SPACE, **common)
        assert caught.value.field == "vector"
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("limit", {"limit": 0}),
        ("limit", {"limit": 1001}),
        ("sources", {"sources": "diary"}),
        ("source", {"sources": ["Not A Label"]}),
        ("privacy", {"privacy": None}),
        ("owner", {"owner": ""}),
    ]
    for field, changed in wrong:
        with pytest.raises(InvalidInput) as caught:
            vestry.search_by_vector(valid, space=SPACE, **{**common, **changed})
        assert caught.value.field == field
    with pytest.raises(InvalidInput) as caught:
        vestry.search(" ", **common)
    assert caught.value.field == "query"


def test_query_is_embedded_by_a_private_job_whose_content_is_deleted(clean: DevStack) -> None:
    # Given a worker that embeds the query
    ring, requests = KeyRing.load(clean.keyring), []
    with psycopg.connect(clean.superuser_url, autocommit=True) as root:
        root.execute(ENSURE_SPACE, ["tiny", 2])

    def work() -> None:
        with psycopg.connect(clean.superuser_url, autocommit=True) as root:
            row = None
            while row is None:
                row = root.execute(
                    """SELECT id, lane, p.owner, body, k.key_id, wrapped, kek_id, result_ttl_s
                       FROM vestry.jobs JOIN vestry.private_payloads p ON job_id = id
                       JOIN vestry.owner_keys k ON k.key_id = p.key_id"""
                ).fetchone()
            job, lane, owner, body, key_id, wrapped, kek_id, ttl = row
            key = ring.unwrap(owner, key_id, wrapped, kek_id)
            requests.append((lane, ttl, json.loads(key.open(PAYLOAD, job, body))))
            result = key.seal(RESULT, job, b'{"vectors": [[1, 0]], "space": "tiny"}')
            root.execute(
                "INSERT INTO vestry.private_results VALUES (%s, %s, %s, %s, now())",
                [job, owner, key_id, result],
            )
            root.execute("DELETE FROM vestry.private_payloads")
            root.execute(
                "UPDATE vestry.jobs "
                "SET state = 'running', start_tag = NULL, lease_id = gen_random_uuid()"
            )
            root.execute(
                "UPDATE vestry.jobs SET state = 'succeeded', lease_id = NULL, finished_at = now()"
            )
            root.execute("SELECT pg_notify('vestry_done', %s)", [str(job)])

    worker = threading.Thread(target=work)
    worker.start()
    # When an owner searches
    with client_of(clean) as producer:
        hits = producer.search("secret words", owner="alice", privacy="private", timeout=20)
        worker.join()
        # Then the query ran in the private interactive lane, and its text and vector are deleted
        assert len(hits) == 0
        assert (hits.space, hits.degraded) == ("tiny", False)
        lane, ttl, payload = requests[0]
        assert (lane, ttl) == ("private.interactive.gpu", 60)
        assert payload == {"texts": ["secret words"], "input": "query"}
        with psycopg.connect(clean.superuser_url) as root:
            for table in ("private_results", "private_payloads"):
                rows = root.execute(f"SELECT count(*) FROM vestry.{table}").fetchone()  # type: ignore[call-overload]
                assert rows == (0,), table
        # And when no worker runs, the job is cancelled
        with pytest.raises(WaitTimeout):
            producer.search("more secret words", owner="alice", privacy="private", timeout=0.3)
        with psycopg.connect(clean.superuser_url) as root:
            states = root.execute("SELECT state FROM vestry.jobs ORDER BY created_at").fetchall()
            payloads = root.execute("SELECT count(*) FROM vestry.private_payloads").fetchone()
        assert [state for (state,) in states] == ["succeeded", "cancelled"]
        assert payloads == (0,)
