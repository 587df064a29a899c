"""Search against real pgvector: recall, isolation of owners, and queries that leave nothing behind."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, LiteralString

import numpy as np
import psycopg
import pytest
from pgvector import HalfVector
from pgvector.psycopg import register_vector

from vestry import (
    Embedding,
    Hits,
    InvalidInput,
    KeyRing,
    UnknownSpace,
    Vestry,
    WaitTimeout,
    client,
)
from vestry.crypto.envelope import CHUNK, DETAIL, PAYLOAD, RESULT, OwnerKey
from vestry.db import operations
from vestry.db.operations import uuid7
from vestry.search.vector_search import EXACT_ROWS
from workers.stack.dev_stack import DevStack

ROWS, DIM, OWNERS, QUERIES = 100_000, 384, 100, 40
SPACE, LARGE_SPACE, LARGE_ROWS = "test-space", "large-source", 40_000
ENSURE_SPACE = "SELECT vestry.ensure_space_v1(%s, 'm', 'r', %s, '', '', true, 'float32', 'test')"
EMPTY = """TRUNCATE vestry.jobs, vestry.private_results, vestry.shareable_results,
  vestry.private_payloads, vestry.shareable_payloads"""


@dataclass
class Library:
    """A hundred owners' private vectors, and the same ones as a hundred libraries' shareable ones."""

    stack: DevStack
    vectors: np.ndarray[Any, np.dtype[np.float32]]
    owners: np.ndarray[Any, np.dtype[np.int64]]
    sources: np.ndarray[Any, np.dtype[np.str_]]
    queries: np.ndarray[Any, np.dtype[np.float32]]

    def truth(self, query: int, chosen: Any) -> set[str]:
        """Numbers of the ten nearest rows among the chosen, by plain arithmetic."""
        places = np.flatnonzero(chosen)
        scores = self.vectors[places] @ self.queries[query]
        return {str(places[place]) for place in np.argsort(-scores)[:10]}


def client_of(stack: DevStack) -> Vestry:
    return Vestry(stack.database_url("vestry_producer"), stack.keyring)


def hnsw(root: psycopg.Connection[Any], space: int) -> tuple[str, str]:
    name = f"vestry.shareable_embeddings_s{space}_hnsw"
    row = root.execute("SELECT pg_get_indexdef(%s::regclass)", [name]).fetchone()
    return name, row[0]  # type: ignore[index]


def make_keys(stack: DevStack, owners: list[str]) -> dict[str, OwnerKey]:
    ring, keys = KeyRing.load(stack.keyring), {}
    url = stack.database_url("vestry_producer")
    with client_of(stack) as producer, psycopg.connect(url) as conn:
        for owner in owners:
            producer.enqueue(conn, Embedding(texts=["x"]), owner=owner, privacy="private")
        conn.commit()
    with psycopg.connect(stack.superuser_url) as root:
        for owner, *row in root.execute(
            "SELECT owner, key_id, wrapped, kek_id FROM vestry.owner_keys"
        ):
            keys[owner] = ring.unwrap(owner, *row)
        root.execute(EMPTY)
    return keys


@pytest.fixture(scope="module")
def library(stack: DevStack) -> Library:
    rng = np.random.default_rng(7)
    centres = rng.normal(size=(500, DIM))

    def points(count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        raw = centres[rng.integers(500, size=count)] + 0.8 * rng.normal(size=(count, DIM))
        unit = raw / np.linalg.norm(raw, axis=1, keepdims=True)
        return unit.astype(np.float16).astype(np.float32)

    made = Library(
        stack=stack,
        vectors=points(ROWS),
        owners=rng.permutation(ROWS) % OWNERS,
        sources=rng.choice(["big", "middle", "small"], p=[0.60, 0.35, 0.05], size=ROWS),
        queries=points(QUERIES),
    )
    keys = make_keys(stack, [f"owner-{number}" for number in range(OWNERS)])
    ids = [uuid7() for _ in range(ROWS)]
    with psycopg.connect(stack.superuser_url) as root:
        register_vector(root)
        space = root.execute(ENSURE_SPACE, [SPACE, DIM]).fetchone()[0]  # type: ignore[index]
        # Rows first, index after: the same index in a fraction of the time.
        index, definition = hnsw(root, space)
        root.execute(f"DROP INDEX {index}")
        root.execute("SET session_replication_role = replica")
        for privacy, name in (("private", "owner"), ("shareable", "library")):
            copy = f"COPY vestry.{privacy}_embeddings FROM STDIN WITH (FORMAT binary)"
            with root.cursor().copy(copy) as rows:
                rows.set_types(["uuid", "int4", "text", "text", "halfvec"])
                for place in range(ROWS):
                    owner, source = f"{name}-{made.owners[place]}", str(made.sources[place])
                    rows.write_row(
                        (ids[place], space, owner, source, HalfVector(made.vectors[place]))
                    )
        root.execute(
            """CREATE TEMP TABLE seeds (
                 id uuid, n int, owner text, source text, detail bytea, text bytea, key_id uuid)"""
        )
        with root.cursor().copy("COPY seeds FROM STDIN WITH (FORMAT binary)") as rows:
            rows.set_types(["uuid", "int4", "text", "text", "bytea", "bytea", "uuid"])
            for place in range(ROWS):
                key = keys[f"owner-{made.owners[place]}"]
                detail = json.dumps({"id": str(place), "date": "1660", "metadata": None})
                rows.write_row(
                    (
                        ids[place],
                        place,
                        key.owner,
                        str(made.sources[place]),
                        key.seal(DETAIL, ids[place], detail.encode()),
                        key.seal(CHUNK, ids[place], f"text {place}".encode()),
                        key.key_id,
                    )
                )
        statements: tuple[LiteralString, ...] = (
            """INSERT INTO vestry.private_documents (id, owner, source, external_hash, key_id, detail)
               SELECT id, owner, source, uuid_send(id), key_id, detail FROM seeds""",
            """INSERT INTO vestry.private_chunks
               SELECT id, id, owner, 0, 0, 10, '', key_id, text FROM seeds""",
            """INSERT INTO vestry.shareable_documents (id, owner, source, external_hash, detail)
               SELECT id, replace(owner, 'owner', 'library'), source, uuid_send(id),
                      json_build_object('id', n::text)::text FROM seeds""",
            """INSERT INTO vestry.shareable_chunks
               SELECT id, id, replace(owner, 'owner', 'library'), 0, 0, 10, '', 'text' FROM seeds""",
        )
        for statement in statements:
            root.execute(statement)
        root.execute("SET maintenance_work_mem = '1GB'")
        # Coarse, to save time: the planner must not use it.
        root.execute(f"{definition} WITH (m = 4, ef_construction = 16)")
        # A space whose large source is searched through the index of the migration.
        large = root.execute(ENSURE_SPACE, [LARGE_SPACE, DIM]).fetchone()[0]  # type: ignore[index]
        index, definition = hnsw(root, large)
        root.execute(f"DROP INDEX {index}")
        root.execute(
            """INSERT INTO vestry.shareable_embeddings
               SELECT chunk_id, %s, e.owner, e.source, vector
               FROM vestry.shareable_embeddings e JOIN seeds ON id = chunk_id WHERE n < %s""",
            [large, LARGE_ROWS],
        )
        root.execute(definition)
    with psycopg.connect(stack.superuser_url, autocommit=True) as root:
        root.execute("VACUUM ANALYZE")
    return made


@pytest.fixture
def vestry(stack: DevStack) -> Iterator[Vestry]:
    with client_of(stack) as producer:
        yield producer


def recall(library: Library, found: list[Hits], chosen: Any) -> float:
    right = sum(
        len({hit.document for hit in hits} & library.truth(query, chosen))
        for query, hits in enumerate(found)
    )
    return right / (10 * len(found))


def searched(
    library: Library, vestry: Vestry, *, space: str = SPACE, **how: Any
) -> tuple[list[Hits], float]:
    began = time.perf_counter()
    found = [
        vestry.search_by_vector(query.tolist(), space=space, **how) for query in library.queries
    ]
    return found, (time.perf_counter() - began) / len(found)


@pytest.mark.slow
@pytest.mark.parametrize(("privacy", "owner"), [("private", "owner-7"), ("shareable", "library-7")])
def test_recall_for_an_owner_of_one_percent(
    library: Library, vestry: Vestry, privacy: str, owner: str, record_property: Any
) -> None:
    # Given one owner's thousand documents among a hundred thousand, when the owner searches
    found, seconds = searched(library, vestry, owner=owner, privacy=privacy)
    # Then the ten nearest are found, best first, with text and scores
    assert recall(library, found, library.owners == 7) >= 0.99
    for query, hits in enumerate(found):
        assert len(hits) == 10
        assert {hit.owner for hit in hits} == {owner}
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        best = int(hits[0].document)
        assert hits[0].score == pytest.approx(
            float(library.vectors[best] @ library.queries[query]), abs=2e-3
        )
    if privacy == "private":
        assert found[0][0].text == f"text {found[0][0].document}"
        assert found[0][0].date == "1660"
    record_property("seconds_a_search", seconds)
    assert seconds < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("source", ["small", "middle"])
def test_a_shareable_source_among_others_is_searched_exactly(
    library: Library, vestry: Vestry, source: str
) -> None:
    found, _ = searched(library, vestry, owner="stranger", privacy="shareable", sources=[source])
    assert recall(library, found, library.sources == source) >= 0.99
    assert {hit.source for hits in found for hit in hits} == {source}


@pytest.mark.slow
def test_a_source_that_is_most_of_a_space_is_searched_through_its_index(
    library: Library, vestry: Vestry, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a selection too large to compare row by row
    chosen = (library.sources == "big") & (np.arange(ROWS) < LARGE_ROWS)
    assert chosen.sum() > EXACT_ROWS
    how: dict[str, Any] = {"owner": "stranger", "privacy": "shareable", "sources": ["big"]}
    # When it is searched, then the index is used, with high recall
    plans = spy_on_plans(monkeypatch)
    found, _ = searched(library, vestry, space=LARGE_SPACE, **how)
    assert sum("_hnsw" in plan for plan in plans) == QUERIES
    assert recall(library, found, chosen) >= 0.95
    # And an exact search does not use it
    plans.clear()
    searched(library, vestry, space=LARGE_SPACE, **{**how, "sources": ["small"]})
    assert plans
    assert not any("_hnsw" in plan for plan in plans)


def spy_on_plans(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The plan of every comparison from now on."""
    plans: list[str] = []
    carry_out = operations.execute

    def run(conn: psycopg.Connection[Any], work: Any) -> Any:
        def explained() -> Any:
            rows: Any = None
            while True:
                try:
                    query = work.send(rows)
                except StopIteration as end:
                    return end.value
                text = query.text if isinstance(query.text, str) else query.text.as_string()
                if "<=>" in text:
                    plan = yield operations.Query(f"EXPLAIN {text}", query.params)
                    plans.append(str(plan))
                rows = yield query

        return carry_out(conn, explained())

    monkeypatch.setattr(client, "execute", run)
    return plans


@pytest.mark.slow
def test_own_sources_and_shared_ones_are_searched_together(
    library: Library, vestry: Vestry
) -> None:
    found, _ = searched(
        library,
        vestry,
        owner="owner-3",
        privacy="private",
        own_sources=["big"],
        sources=["small"],
        limit=10,
    )
    mine = (library.owners == 3) & (library.sources == "big")
    assert recall(library, found, mine | (library.sources == "small")) >= 0.99
    kinds = {(hit.owner == "owner-3", hit.source) for hits in found for hit in hits}
    assert kinds == {(True, "big"), (False, "small")}


@pytest.mark.slow
def test_another_owners_private_rows_are_never_seen(library: Library, vestry: Vestry) -> None:
    for owner in ("owner-8", "stranger", "owner-7' OR true --", "{owner-7,owner-8}"):
        found, _ = searched(library, vestry, owner=owner, privacy="private")
        assert {hit.owner for hits in found for hit in hits} <= {owner}
        assert bool(found[0]) is (owner == "owner-8")
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
    right = library.queries[0].tolist()
    common: dict[str, Any] = {"owner": "owner-1", "privacy": "private"}
    with pytest.raises(UnknownSpace):
        vestry.search_by_vector(right, space="elsewhere", **common)
    with pytest.raises(UnknownSpace):
        vestry.search("x", space="elsewhere", **common)
    wrong_vectors = (right[:-1], [float("nan")] * DIM, [float("inf"), *right[1:]], [])
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
    for field, given in wrong:
        with pytest.raises(InvalidInput) as caught:
            vestry.search_by_vector(right, space=SPACE, **{**common, **given})
        assert caught.value.field == field
    with pytest.raises(InvalidInput) as caught:
        vestry.search(" ", **common)
    assert caught.value.field == "query"


def test_the_query_is_embedded_by_a_private_job_that_keeps_nothing(clean: DevStack) -> None:
    # Given a worker that embeds the query
    ring, asked = KeyRing.load(clean.keyring), []
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
            asked.append((lane, ttl, json.loads(key.open(PAYLOAD, job, body))))
            answer = key.seal(RESULT, job, b'{"vectors": [[1, 0]], "space": "tiny"}')
            root.execute(
                "INSERT INTO vestry.private_results VALUES (%s, %s, %s, %s, now())",
                [job, owner, key_id, answer],
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
        lane, ttl, payload = asked[0]
        assert (lane, ttl) == ("private.interactive.gpu", 60)
        assert payload == {"texts": ["secret words"], "input": "query"}
        with psycopg.connect(clean.superuser_url) as root:
            for table in ("private_results", "private_payloads"):
                rows = root.execute(f"SELECT count(*) FROM vestry.{table}").fetchone()  # type: ignore[call-overload]
                assert rows == (0,), table
        # And when no worker answers, the job is cancelled
        with pytest.raises(WaitTimeout):
            producer.search("more secret words", owner="alice", privacy="private", timeout=0.3)
        with psycopg.connect(clean.superuser_url) as root:
            states = root.execute("SELECT state FROM vestry.jobs ORDER BY created_at").fetchall()
            payloads = root.execute("SELECT count(*) FROM vestry.private_payloads").fetchone()
        assert [state for (state,) in states] == ["succeeded", "cancelled"]
        assert payloads == (0,)
