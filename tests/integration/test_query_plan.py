"""The claim query has the same plan and reads as many pages at a large backlog as at a small one."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest

from models import claims
from models.claims import (
    BEGINNING,
    FULL_SCAN_EVERY_S,
    FULL_SCAN_LATEST_S,
    PLANNER_OPTIONS,
    LeasePolicy,
    LowWaterMark,
    ready_jobs_sql,
)
from workers import db
from workers.stack.dev_stack import DevStack

LANE = "private.bulk.gpu"
LIMIT = 64
SAME_MODEL = "coalesce(j.model, '') = coalesce(%(model)s, '')"
POLICY = LeasePolicy(worker="test", privacy="private", lease_s=60, max_run_s=600)


def fill(conn: Any, count: int, first_tag: int = 0, *, analyze: bool = True) -> None:
    conn.execute(
        """INSERT INTO vestry.jobs (id, kind, owner, privacy, latency, pool, start_tag)
           SELECT uuidv7(), 'embedding', 'owner-' || n %% 100, 'private', 'bulk', 'gpu', %s + n
           FROM generate_series(1, %s) n""",
        [first_tag, count],
    )
    if analyze:
        conn.execute("ANALYZE vestry.jobs")


def explain(stack: DevStack, mark: int = BEGINNING) -> dict[str, Any]:
    url = stack.database_url("vestry_private")
    with psycopg.connect(url, options=PLANNER_OPTIONS) as conn:
        row = conn.execute(
            "EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) "
            + ready_jobs_sql(condition=SAME_MODEL),
            {"lane": LANE, "kind": "embedding", "model": None, "mark": mark, "limit": LIMIT},
        ).fetchone()
        assert row is not None
        conn.rollback()
    plan: dict[str, Any] = row[0][0]["Plan"]
    return plan


def nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(n for child in plan.get("Plans", []) for n in nodes(child))]


def pages(plan: dict[str, Any]) -> int:
    return int(plan["Shared Hit Blocks"]) + int(plan["Shared Read Blocks"])


def test_claim_is_one_index_scan_at_200_times_the_backlog(clean: DevStack, admin: Any) -> None:
    fill(admin, 1_000)
    small = explain(clean)
    fill(admin, 199_000, 1_000)
    large = explain(clean)
    for plan in (small, large):
        assert plan["Actual Rows"] == LIMIT
    names = {(n["Node Type"], n.get("Index Name"), n.get("Relation Name")) for n in nodes(large)}
    assert ("Index Scan", "jobs_ready", "jobs") in names, json.dumps(large, indent=1)
    assert not any(kind in {"Sort", "Seq Scan"} and rel == "jobs" for kind, _, rel in names)
    assert not any(kind == "Sort" for kind, _, _ in names)
    assert pages(large) <= pages(small) * 2 + 20


def test_wrong_statistics_change_no_plan(clean: DevStack, admin: Any) -> None:
    """With statistics of an empty table that was filled, and of a full table that was emptied."""
    admin.execute("ALTER TABLE vestry.jobs SET (autovacuum_enabled = false)")
    try:
        admin.execute("VACUUM ANALYZE vestry.jobs")
        fill(admin, 5_000, analyze=False)
        filled = explain(clean)
        admin.execute("ANALYZE vestry.jobs")
        admin.execute("DELETE FROM vestry.jobs WHERE start_tag > 10")
        emptied = explain(clean)
    finally:
        admin.execute("ALTER TABLE vestry.jobs RESET (autovacuum_enabled)")
    for plan, rows in ((filled, LIMIT), (emptied, 10)):
        assert plan["Actual Rows"] == rows
        scans = [n for n in nodes(plan) if n.get("Relation Name") == "jobs"]
        assert [n.get("Index Name") for n in scans] == ["jobs_ready"], json.dumps(plan, indent=1)
        assert not any(n["Node Type"] == "Sort" for n in nodes(plan))


def test_every_connection_that_claims_has_the_planner_options(clean: DevStack) -> None:
    options = db.connection_options("test", 60)
    for role in ("vestry_private", "vestry_shareable", "vestry_control"):
        with psycopg.connect(clean.database_url(role), **options) as conn:
            for name in ("enable_seqscan", "enable_bitmapscan", "enable_sort"):
                assert conn.execute(f"SHOW {name}").fetchone() == ("off",)


def test_mark_keeps_the_claim_flat_under_a_held_snapshot(clean: DevStack, admin: Any) -> None:
    fill(admin, 60_000)
    with psycopg.connect(clean.superuser_url) as holder:
        holder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        holder.execute("SELECT count(*) FROM vestry.lanes")
        fresh = pages(explain(clean))
        admin.execute(
            """UPDATE vestry.jobs SET state = 'running', start_tag = NULL, lease_id = gen_random_uuid()
               WHERE start_tag <= 50000"""
        )
        from_the_beginning = pages(explain(clean))
        from_the_mark = pages(explain(clean, mark=50_000))
    assert from_the_beginning > fresh * 20, "the snapshot should have kept dead entries"
    assert from_the_mark <= fresh * 2 + 20


def test_mark_advances_and_late_commits_are_found(
    clean: DevStack, admin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(admin, 1_000)
    clock = [1000.0]
    monkeypatch.setattr("models.claims.time.monotonic", lambda: clock[0])
    mark = LowWaterMark()
    url = clean.database_url("vestry_private")
    with psycopg.connect(url, autocommit=True, options=PLANNER_OPTIONS) as conn:

        def claim_once() -> list[int]:
            marks = {"embedding": mark}
            lease = claims.claim(conn, POLICY, LANE, ["embedding"], limit=100, marks=marks)
            return [0] * len(lease.jobs) if lease else []

        for _ in range(4):
            assert len(claim_once()) == 100
            clock[0] += FULL_SCAN_EVERY_S + 60
        assert mark.value > 1, "the mark should have moved"
        claim_once()
        # A job of a transaction that began long ago commits below the mark.
        fill(admin, 1, first_tag=mark.value - 2)
        behind = "SELECT count(*) FROM vestry.jobs WHERE state = 'queued' AND start_tag < %s"
        while claim_once():
            pass
        late = admin.execute(behind, [mark.value]).fetchone()[0]
        assert late == 1, "the mark should have skipped it"
        clock[0] += FULL_SCAN_EVERY_S + 60
        assert len(claim_once()) == 1


def test_mark_lags_one_full_scan_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job of a transaction that began before the last full scan is still found."""
    clock = [1000.0]
    monkeypatch.setattr("models.claims.time.monotonic", lambda: clock[0])
    mark = LowWaterMark()
    mark.update(mark.start(), virtual_time=100, first=100, took_s=0)
    assert mark.start() == BEGINNING
    clock[0] += FULL_SCAN_EVERY_S
    mark.update(mark.start(), virtual_time=200, first=150, took_s=0)
    assert mark.start() == 100
    clock[0] += FULL_SCAN_EVERY_S
    assert mark.start() == BEGINNING
    # A slow scan is repeated less often.
    mark.update(mark.start(), virtual_time=300, first=None, took_s=1.0)
    clock[0] += FULL_SCAN_EVERY_S
    assert mark.start() == 150
    clock[0] += FULL_SCAN_LATEST_S
    assert mark.start() == BEGINNING
    # Even after a long scan the next full scan is due within FULL_SCAN_LATEST_S.
    mark.update(mark.start(), virtual_time=400, first=None, took_s=60.0)
    clock[0] += FULL_SCAN_LATEST_S
    assert mark.start() == BEGINNING
