"""Search in 100,000 private vectors of a hundred owners, and in the same vectors as shareable.

`tests/integration/test_search.py` searches a `Library` of a tenth of the size.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, LiteralString, Self

import numpy as np
import psycopg
from pgvector import HalfVector
from pgvector.psycopg import register_vector

from benchmarks.options import Options
from benchmarks.report import BenchmarkResult, percentile
from vestry import Embedding, Hits, KeyRing, Vestry
from vestry.crypto.envelope import CHUNK, DETAIL, OwnerKey
from vestry.db.operations import uuid7
from workers.stack.dev_stack import DevStack
from workers.stack.server_dir import remove

ROWS: Final = 100_000
LARGE_SHARE: Final = 0.4
"""Share of the rows that are also in LARGE_SPACE, whose large source is searched by the index."""
DIM: Final = 384
OWNERS: Final = 100
QUERIES: Final = 40
SPACE: Final = "test-space"
LARGE_SPACE: Final = "large-source"
ENSURE_SPACE: Final = (
    "SELECT vestry.ensure_space_v1(%s, 'm', 'r', %s, '', '', true, 'float32', 'test')"
)
EMPTY: Final = """TRUNCATE vestry.jobs, vestry.private_results, vestry.shareable_results,
  vestry.private_payloads, vestry.shareable_payloads"""
MAX_SEARCH_S: Final = 0.5
"""Aim for the p95 duration of a search."""

Floats = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True, slots=True)
class Library:
    """Private vectors of a hundred owners, and the same as shareable ones of a hundred libraries.

    Attributes:
        stack: the servers that store them.
        vectors: of shape (rows, DIM), each of length 1.
        owners: number of each row's owner.
        sources: each row's source: `big` (60 %), `middle` (35 %) or `small` (5 %).
        queries: of shape (QUERIES, DIM).
        large_rows: number of rows, from the first, that are also in LARGE_SPACE.
    """

    stack: DevStack
    vectors: Floats
    owners: np.ndarray[Any, np.dtype[np.int64]]
    sources: np.ndarray[Any, np.dtype[np.str_]]
    queries: Floats
    large_rows: int

    @classmethod
    def build(cls, stack: DevStack, rows: int) -> Self:
        """Fill the tables of a new stack; vectors are drawn from a fixed seed around 500 centres."""
        rng = np.random.default_rng(7)
        centres = rng.normal(size=(500, DIM))

        def points(count: int) -> Floats:
            raw = centres[rng.integers(500, size=count)] + 0.8 * rng.normal(size=(count, DIM))
            unit = raw / np.linalg.norm(raw, axis=1, keepdims=True)
            return unit.astype(np.float16).astype(np.float32)

        library = cls(
            stack=stack,
            vectors=points(rows),
            owners=rng.permutation(rows) % OWNERS,
            sources=rng.choice(["big", "middle", "small"], p=[0.60, 0.35, 0.05], size=rows),
            queries=points(QUERIES),
            large_rows=int(rows * LARGE_SHARE),
        )
        library._store()
        return library

    def client(self) -> Vestry:
        """A producer."""
        return Vestry(self.stack.database_url("vestry_producer"), self.stack.keyring)

    def nearest(self, query: int, selected: Any) -> set[str]:
        """Numbers of the ten nearest of the selected rows, by exact computation."""
        rows = np.flatnonzero(selected)
        scores = self.vectors[rows] @ self.queries[query]
        return {str(rows[number]) for number in np.argsort(-scores)[:10]}

    def recall(self, results: Sequence[Hits], selected: Any) -> float:
        """Share of the ten nearest of the selected rows among the hits, over all queries."""
        correct = sum(
            len({hit.document for hit in hits} & self.nearest(query, selected))
            for query, hits in enumerate(results)
        )
        return correct / (10 * len(results))

    def search(
        self, vestry: Vestry, *, space: str = SPACE, **options: Any
    ) -> tuple[list[Hits], list[float]]:
        """Hits of every query, and its duration in seconds."""
        results, seconds = [], []
        for query in self.queries:
            started = time.perf_counter()
            results.append(vestry.search_by_vector(query.tolist(), space=space, **options))
            seconds.append(time.perf_counter() - started)
        return results, seconds

    def _store(self) -> None:
        rows = len(self.vectors)
        keys = self._make_keys()
        ids = [uuid7() for _ in range(rows)]
        with psycopg.connect(self.stack.superuser_url) as root:
            register_vector(root)
            space = _space(root, SPACE)
            # Building the index after the rows takes a fraction of the time.
            index, definition = _hnsw(root, space)
            root.execute(f"DROP INDEX {index}".encode())
            root.execute("SET session_replication_role = replica")
            for privacy, name in (("private", "owner"), ("shareable", "library")):
                copy = f"COPY vestry.{privacy}_embeddings FROM STDIN WITH (FORMAT binary)"
                with root.cursor().copy(copy.encode()) as target:
                    target.set_types(["uuid", "int4", "text", "text", "halfvec"])
                    for row in range(rows):
                        owner, source = f"{name}-{self.owners[row]}", str(self.sources[row])
                        vector = HalfVector(self.vectors[row])
                        target.write_row((ids[row], space, owner, source, vector))
            root.execute(
                """CREATE TEMP TABLE seeds (
                     id uuid, n int, owner text, source text, detail bytea, text bytea,
                     key_id uuid)"""
            )
            with root.cursor().copy("COPY seeds FROM STDIN WITH (FORMAT binary)") as target:
                target.set_types(["uuid", "int4", "text", "text", "bytea", "bytea", "uuid"])
                for row in range(rows):
                    key = keys[f"owner-{self.owners[row]}"]
                    detail = json.dumps({"id": str(row), "date": "1660", "metadata": None})
                    target.write_row(
                        (
                            ids[row],
                            row,
                            key.owner,
                            str(self.sources[row]),
                            key.seal(DETAIL, ids[row], detail.encode()),
                            key.seal(CHUNK, ids[row], f"text {row}".encode()),
                            key.key_id,
                        )
                    )
            for statement in _DOCUMENTS:
                root.execute(statement)
            root.execute("SET maintenance_work_mem = '1GB'")
            # A coarse index, to save time: it only has to exist, since the planner must not use it.
            root.execute(f"{definition} WITH (m = 4, ef_construction = 16)".encode())
            # A space whose large source is searched by an index as the migration creates it.
            large = _space(root, LARGE_SPACE)
            index, definition = _hnsw(root, large)
            root.execute(f"DROP INDEX {index}".encode())
            root.execute(
                """INSERT INTO vestry.shareable_embeddings
                   SELECT chunk_id, %s, e.owner, e.source, vector
                   FROM vestry.shareable_embeddings e JOIN seeds ON id = chunk_id WHERE n < %s""",
                [large, self.large_rows],
            )
            root.execute(definition.encode())
        with psycopg.connect(self.stack.superuser_url, autocommit=True) as root:
            root.execute("VACUUM ANALYZE")

    def _make_keys(self) -> dict[str, OwnerKey]:
        ring, keys = KeyRing.load(self.stack.keyring), {}
        url = self.stack.database_url("vestry_producer")
        with self.client() as producer, psycopg.connect(url) as conn:
            for number in range(OWNERS):
                job = Embedding(texts=["x"])
                producer.enqueue(conn, job, owner=f"owner-{number}", privacy="private")
            conn.commit()
        with psycopg.connect(self.stack.superuser_url) as root:
            for owner, *row in root.execute(
                "SELECT owner, key_id, wrapped, kek_id FROM vestry.owner_keys"
            ):
                keys[owner] = ring.unwrap(owner, *row)
            root.execute(EMPTY)
        return keys


_DOCUMENTS: Final[tuple[LiteralString, ...]] = (
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


def _space(root: psycopg.Connection[Any], name: str) -> int:
    row = root.execute(ENSURE_SPACE, [name, DIM]).fetchone()
    assert row is not None
    return int(row[0])


def _hnsw(root: psycopg.Connection[Any], space: int) -> tuple[str, str]:
    """Name and definition of a space's index."""
    name = f"vestry.shareable_embeddings_s{space}_hnsw"
    row = root.execute("SELECT pg_get_indexdef(%s::regclass)", [name]).fetchone()
    assert row is not None
    return name, row[0]


def run(options: Options) -> BenchmarkResult:
    """Build the library, and search it once for each rule of the search."""
    result = BenchmarkResult("Search, by vector, in shared tables")
    rows = options.scaled(ROWS)
    home = Path(tempfile.mkdtemp(prefix="vestry-bench-"))
    try:
        with DevStack(home) as stack:
            started = time.perf_counter()
            library = Library.build(stack, rows)
            seconds = time.perf_counter() - started
            result.add("library built", seconds, "s", note=f"{rows:,} private and shareable rows")
            with library.client() as vestry:
                _measure(result, library, vestry)
    finally:
        remove(home)
    return result


def _measure(result: BenchmarkResult, library: Library, vestry: Vestry) -> None:
    own = {"owner": "owner-7", "privacy": "private"}
    other = {"owner": "library-7", "privacy": "shareable"}
    by_source = {"owner": "stranger", "privacy": "shareable"}
    first = np.arange(len(library.vectors)) < library.large_rows
    for name, selected, min_recall, options in (
        ("private, an owner of 1 %", library.owners == 7, 0.99, own),
        ("shareable, an owner of 1 %", library.owners == 7, 0.99, other),
        ("a source of 35 %, exactly", library.sources == "middle", 0.99,
         {**by_source, "sources": ["middle"]}),
        ("a source of 60 %, by its index", (library.sources == "big") & first, 0.95,
         {**by_source, "sources": ["big"], "space": LARGE_SPACE}),
    ):  # fmt: skip
        results, seconds = library.search(vestry, **options)
        result.rounds[name] = seconds
        recall = library.recall(results, selected)
        result.add(f"{name}: recall", recall, at_least=min_recall)
        p95 = percentile(seconds, 0.95)
        result.add(f"{name}: p95", p95, "s", at_most=MAX_SEARCH_S, note=f"{len(seconds)} searches")
