"""`vestry dead`, `vestry rerun` and `vestry status --degraded`, on jobs ended by the test."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.producer_helpers import HELLO, count, kill, succeed
from vestry import KeyRing, Vestry
from vestry.cli import main
from workers.stack.dev_stack import DevStack

Root = psycopg.Connection[Any]
Command = Callable[..., Any]


@pytest.fixture
def command(
    clean: DevStack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    monkeypatch.setenv("VESTRY_DATABASE_URL", clean.database_url("vestry_producer"))
    monkeypatch.setenv("VESTRY_KEYRING_FILE", str(clean.keyring))

    def run(*arguments: str, code: int = 0) -> Any:
        status = main([*arguments, "--json"])
        out = capsys.readouterr().out
        assert status == code, out
        document = json.loads(out)
        # The same command without --json prints something and does not fail.
        if {"status", "list", "show"}.intersection(arguments):
            assert main(list(arguments)) == code
            printed = capsys.readouterr()
            assert printed.out or code
            assert "Traceback" not in printed.err
        return document

    return run


@pytest.fixture
def jobs(vestry: Vestry, conn: psycopg.Connection[Any], root: Root) -> list[UUID]:
    """Dead jobs: two of ann out of attempts, one of ben with reason poison."""
    refs = vestry.enqueue_many(conn, [HELLO] * 2, owner="ann", privacy="private")
    refs += vestry.enqueue_many(conn, [HELLO], owner="ben", privacy="shareable")
    conn.commit()
    for job, code in zip(refs, ("rate_limited", "rate_limited", "crashed"), strict=True):
        kill(root, job.id, code)
    return [job.id for job in refs]


def listed(document: Any) -> set[UUID]:
    return {UUID(row["job"]) for row in document["jobs"]}


def test_dead_list_filters_and_show_explains(command: Command, jobs: list[UUID]) -> None:
    assert listed(command("dead", "list")) == set(jobs)
    assert listed(command("dead", "list", "--reason", "poison")) == {jobs[2]}
    assert listed(command("dead", "list", "--owner", "ann", "--since", "1h")) == set(jobs[:2])
    assert listed(command("dead", "list", "--since", "2999-01-01T00:00Z")) == set()
    shown = command("dead", "show", str(jobs[2]))
    assert (shown["reason"], shown["kept"], shown["attempts"]) == ("poison", True, [])
    assert shown["advice"]
    assert command("dead", "show", str(uuid4()), code=2)["error"]["code"] == "unknown_job"
    assert command("dead", "list", "--lane", "x", code=2)["error"]["code"] == "invalid_input"
    assert command("dead", "list", "--since", "soon", code=2)["error"]["code"] == "usage"


def test_dead_replay_takes_one_job_a_filter_or_all(
    command: Command, jobs: list[UUID], root: Root
) -> None:
    first = command("dead", "replay", str(jobs[0]))
    assert first["jobs"][0]["job"] == str(jobs[0])
    assert first["jobs"][0]["created"] is True
    filtered = command("dead", "replay", "--code", "rate_limited")
    assert listed(filtered) == {jobs[1]}
    remaining = command("dead", "replay", "--all")
    assert listed(remaining) == {jobs[2]}
    assert command("dead", "replay", "--all") == {"jobs": [], "gone": [], "follow": []}
    assert count(root, "jobs") == 6
    assert listed(command("dead", "list")) == set()
    assert listed(command("dead", "list", "--replayed")) == set(jobs)
    for invalid in ((), (str(jobs[0]), "--all"), ("--all", "--owner", "ann")):
        assert command("dead", "replay", *invalid, code=2)["error"]["code"] == "usage"


def test_dead_replay_reports_job_without_payload_and_replays_the_others(
    command: Command, jobs: list[UUID], root: Root
) -> None:
    root.execute("DELETE FROM vestry.private_payloads WHERE job_id = %s", [jobs[0]])
    result = command("dead", "replay", "--all", code=1)
    assert result["gone"] == [str(jobs[0])]
    assert listed(result) == set(jobs[1:])


def test_rerun_replays_degraded_results(
    command: Command, vestry: Vestry, conn: psycopg.Connection[Any], root: Root, clean: DevStack
) -> None:
    refs = vestry.enqueue_many(conn, [HELLO] * 2, owner="ann", privacy="shareable")
    conn.commit()
    for job in refs:
        succeed(root, KeyRing.load(clean.keyring), job.id, {"vectors": [], "space": "s"})
    root.execute("UPDATE vestry.jobs SET degraded = true WHERE id = %s", [refs[1].id])
    assert listed(command("status", "--degraded")) == {refs[1].id}
    assert listed(command("rerun", "--owner", "ben")) == set()
    assert listed(command("rerun", "--all")) == {refs[1].id}
    assert listed(command("status", "--degraded")) == set()
    assert command("rerun", code=2)["error"]["code"] == "usage"
