"""Dead and degraded jobs: lists with filters, and how long their payloads are kept."""

from __future__ import annotations

import datetime as dt
from typing import Any

import psycopg
import pytest

from models import retention
from tests.producer_helpers import HELLO, attach, count, kill, succeed
from vestry import InvalidInput, JobFailed, KeyRing, Reason, UnknownJob, Vestry
from workers.stack.dev_stack import DevStack

Root = psycopg.Connection[Any]


def test_dead_jobs_are_filtered_by_every_field(
    vestry: Vestry, conn: psycopg.Connection[Any], root: Root
) -> None:
    jobs = {
        (owner, code): vestry.enqueue(conn, HELLO, owner=owner, privacy="private")
        for owner in ("ann", "ben")
        for code in ("crashed", "rate_limited", "unknown_code")
    }
    conn.commit()
    for (_, code), job in jobs.items():
        kill(root, job.id, code)
    keys = {job.id: key for key, job in jobs.items()}

    def listed(**filters: Any) -> set[tuple[str, str]]:
        return {keys[job.status.job] for job in vestry.dead(**filters)}

    assert listed() == set(jobs)
    assert listed(owner="ann", code="crashed") == {("ann", "crashed")}
    assert listed(reason=Reason.OUT_OF_ATTEMPTS) == {(o, "rate_limited") for o in ("ann", "ben")}
    assert listed(reason="other", owner="ben") == {("ben", "unknown_code")}
    assert listed(lane="private.bulk.gpu", kind="embedding") == set(jobs)
    assert listed(lane="shareable.bulk.gpu") == set()
    assert listed(since=dt.timedelta(minutes=5)) == set(jobs)
    assert listed(since=dt.datetime.now(dt.UTC) + dt.timedelta(minutes=5)) == set()
    assert len(vestry.dead(limit=2)) == 2
    poison = vestry.past_job(jobs["ann", "crashed"])
    assert (poison.reason, poison.kept, poison.replayed_as) == (Reason.POISON, True, None)
    assert poison.reason is not None
    assert poison.reason.advice
    with pytest.raises(JobFailed) as failed:
        vestry.result(jobs["ann", "crashed"])
    assert failed.value.reason is Reason.POISON
    # Replayed jobs are left out by default.
    new = vestry.replay(jobs["ann", "crashed"])
    assert ("ann", "crashed") not in listed()
    assert ("ann", "crashed") in listed(replayed=True)
    assert vestry.past_job(jobs["ann", "crashed"]).replayed_as == new.id
    for wrong in ({"kind": "x"}, {"lane": "x"}, {"reason": "x"}, {"limit": 0}):
        with pytest.raises(InvalidInput):
            vestry.dead(**wrong)
    with pytest.raises(InvalidInput):
        vestry.dead(since=dt.datetime.now())  # noqa: DTZ005 - naive on purpose


def test_degraded_jobs_are_listed_with_their_reason_and_replayed(
    vestry: Vestry, conn: psycopg.Connection[Any], root: Root, clean: DevStack
) -> None:
    good, degraded = vestry.enqueue_many(conn, [HELLO] * 2, owner="ann", privacy="shareable")
    conn.commit()
    for job in (good, degraded):
        succeed(root, KeyRing.load(clean.keyring), job.id, {"vectors": [], "space": "s"})
    root.execute("UPDATE vestry.jobs SET degraded = true WHERE id = %s", [degraded.id])
    root.execute(
        """INSERT INTO vestry.receipts (job_id, lease_id, privacy, attempt, outcome, reason,
             intended_model, served_model, served_backend, degraded, started_at)
           VALUES (%s, gen_random_uuid(), 'shareable', 1, 'succeeded', 'rate_limited', 'big', 'small',
                   'local', true, now())""",
        [degraded.id],
    )
    (job,) = vestry.degraded()
    assert (job.status.job, job.reason, job.kept) == (degraded.id, None, True)
    assert (job.degraded_by, job.intended_model, job.served_model) == (
        "rate_limited",
        "big",
        "small",
    )
    (attempt,) = vestry.receipts(degraded)
    assert (attempt.outcome, attempt.degraded, attempt.served.backend) == (
        "succeeded",
        True,
        "local",
    )
    new = vestry.replay(degraded)
    assert vestry.degraded() == []
    assert vestry.status(new).state == "queued"
    # The old result keeps its time to live.
    assert vestry.result_json(degraded) == {"vectors": [], "space": "s"}


@pytest.mark.parametrize("privacy", ["private", "shareable"])
def test_dead_job_keeps_its_payload_until_it_is_pruned(
    vestry: Vestry, conn: psycopg.Connection[Any], root: Root, clean: DevStack, privacy: str
) -> None:
    job = vestry.enqueue(conn, HELLO, owner="ann", privacy=privacy)
    conn.commit()
    attach(root, clean, job.id, "ann", privacy)
    kill(root, job.id)
    with psycopg.connect(clean.database_url("vestry_control"), autocommit=True) as control:
        assert retention.prune_jobs(control, 60) == 0
        assert vestry.past_job(job).kept
        root.execute("UPDATE vestry.jobs SET finished_at = now() - interval '61 s'")
        assert retention.prune_jobs(control, 60) == 1
    assert count(root, f"{privacy}_payloads") == count(root, f"{privacy}_blobs") == 0
    with pytest.raises(UnknownJob):
        vestry.replay(job)
