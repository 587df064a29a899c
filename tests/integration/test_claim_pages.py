"""A claim reads few pages, even with wrong table statistics."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import psycopg
import pytest

from models import claims
from models.claims import BEGINNING, PLANNER_OPTIONS
from workers.stack.dev_stack import DevStack

LANE = "private.bulk.gpu"
BACKLOG = 20_000


@pytest.fixture
def backlog(clean: DevStack) -> Iterator[UUID]:
    """Fill a queue after the table was analysed. Yields the last job's id."""
    with psycopg.connect(clean.superuser_url, autocommit=True) as conn:
        conn.execute("ALTER TABLE vestry.jobs SET (autovacuum_enabled = false)")
        try:
            conn.execute("VACUUM ANALYZE vestry.jobs")
            conn.execute(
                """INSERT INTO vestry.jobs (id, kind, owner, privacy, latency, pool, start_tag)
                   SELECT uuidv7(), 'embedding', 'ann', 'private', 'bulk', 'gpu', n
                   FROM generate_series(1, %s) n""",
                [BACKLOG],
            )
            row = conn.execute(
                "SELECT id FROM vestry.jobs ORDER BY start_tag DESC LIMIT 1"
            ).fetchone()
            assert row is not None
            yield row[0]
        finally:
            conn.execute("ALTER TABLE vestry.jobs RESET (autovacuum_enabled)")


def claimed(conn: Any, kinds: list[str], hint: UUID | None = None) -> tuple[int, int, str]:
    """Rows, pages and plan of a claim."""
    parameters: dict[str, Any] = {
        "lane": LANE,
        "kinds": kinds,
        "hint": hint,
        "marks": [BEGINNING] * len(kinds),
        "limit": 8,
        "budgets": [1_000] * len(kinds),
        "privacy": "private",
        "worker": "test",
        "exclusive": False,
        "lease_s": 60,
        "max_run_s": 600,
    }
    explained = "EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) " + claims.CLAIM.text
    values = [parameters[name] for name in claims.CLAIM.names]
    row = psycopg.RawCursor(conn).execute(explained, values).fetchone()
    assert row is not None
    conn.rollback()
    plan: dict[str, Any] = row[0][0]["Plan"]
    pages = int(plan["Shared Hit Blocks"]) + int(plan["Shared Read Blocks"])
    return plan["Actual Rows"], pages, json.dumps(plan, indent=1)


@pytest.mark.parametrize("plans", ["force_custom_plan", "force_generic_plan"])
def test_hinted_claim_fetches_its_job_by_id(clean: DevStack, backlog: UUID, plans: str) -> None:
    options = f"{PLANNER_OPTIONS} -c plan_cache_mode={plans}"
    with psycopg.connect(clean.database_url("vestry_private"), options=options) as conn:
        rows, pages, plan = claimed(conn, ["embedding"], backlog)
    assert rows == 8
    assert pages < 400, plan


def test_claim_of_many_kinds_reads_the_heads_of_queues_only(clean: DevStack, backlog: UUID) -> None:
    """Nor does a claim of the last job of a kind scan the queue of another kind."""
    with psycopg.connect(clean.superuser_url, autocommit=True) as admin:
        admin.execute("UPDATE vestry.jobs SET kind = 'rerank' WHERE id = %s", [backlog])
    url = clean.database_url("vestry_private")
    with psycopg.connect(url, options=PLANNER_OPTIONS) as conn:
        for kinds, count in ((["embedding", "classification", "rerank"], 8), (["rerank"], 1)):
            rows, pages, plan = claimed(conn, kinds)
            assert rows == count
            assert pages < 400, plan
