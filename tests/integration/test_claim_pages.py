"""A claim by a hint touches a handful of pages, whatever the planner believes about the table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import psycopg
import pytest

from models import leases
from models.picking import BEGINNING, PLANNER_OPTIONS
from workers.devstack import DevStack

LANE = "private.bulk.gpu"
BACKLOG = 20_000


@pytest.fixture
def backlog(clean: DevStack) -> Iterator[UUID]:
    """A line that came after the table was analysed; its last job's id."""
    with psycopg.connect(clean.superuser_url, autocommit=True) as conn:
        conn.execute("ALTER TABLE vestry.jobs SET (autovacuum_enabled = false)")
        try:
            conn.execute("VACUUM ANALYZE vestry.jobs")
            conn.execute(
                """INSERT INTO vestry.jobs (id, kind, owner, privacy, latency, pool, turn)
                   SELECT uuidv7(), 'embedding', 'ann', 'private', 'bulk', 'gpu', n
                   FROM generate_series(1, %s) n""",
                [BACKLOG],
            )
            row = conn.execute("SELECT id FROM vestry.jobs ORDER BY turn DESC LIMIT 1").fetchone()
            assert row is not None
            yield row[0]
        finally:
            conn.execute("ALTER TABLE vestry.jobs RESET (autovacuum_enabled)")


@pytest.mark.parametrize("plans", ["force_custom_plan", "force_generic_plan"])
def test_a_hinted_claim_fetches_its_job_by_id(clean: DevStack, backlog: UUID, plans: str) -> None:
    options = f"{PLANNER_OPTIONS} -c plan_cache_mode={plans}"
    with psycopg.connect(clean.database_url("vestry_private"), options=options) as conn:
        row = conn.execute(
            "EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) " + leases.CLAIM,
            {
                "lane": LANE,
                "kinds": ["embedding"],
                "hint": backlog,
                "marks": [BEGINNING],
                "limit": 8,
                "budgets": [1_000],
                "privacy": "private",
                "worker": "test",
                "alone": False,
                "lease_s": 60,
                "max_run_s": 600,
            },
        ).fetchone()
        assert row is not None
        conn.rollback()
    plan: dict[str, Any] = row[0][0]["Plan"]
    assert plan["Actual Rows"] == 8
    pages = int(plan["Shared Hit Blocks"]) + int(plan["Shared Read Blocks"])
    assert pages < 400, json.dumps(plan, indent=1)
