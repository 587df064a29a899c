"""`vestry dead`, `vestry rerun` and `vestry status --degraded`, on jobs with forced ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.producing import HELLO, count, kill, succeed
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
        got = main([*arguments, "--json"])
        out = capsys.readouterr().out
        assert got == code, out
        document = json.loads(out)
        # Without --json it prints something, and no traceback.
        if {"status", "list", "show"}.intersection(arguments):
            assert main(list(arguments)) == code
            printed = capsys.readouterr()
            assert printed.out or code
            assert "Traceback" not in printed.err
        return document

    return run


@pytest.fixture
def jobs(vestry: Vestry, conn: psycopg.Connection[Any], root: Root) -> list[UUID]:
    """Two jobs of ann that ran out of attempts, one of ben that is poison."""
    made = vestry.enqueue_many(conn, [HELLO] * 2, owner="ann", privacy="private")
    made += vestry.enqueue_many(conn, [HELLO], owner="ben", privacy="shareable")
    conn.commit()
    for job, code in zip(made, ("rate_limited", "rate_limited", "crashed"), strict=True):
        kill(root, job.id, code)
    return [job.id for job in made]


def listed(document: Any) -> set[UUID]:
    return {UUID(row["job"]) for row in document["jobs"]}


def test_dead_jobs_are_listed_and_shown(command: Command, jobs: list[UUID]) -> None:
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


def test_one_several_or_all_dead_jobs_are_replayed(
    command: Command, jobs: list[UUID], root: Root
) -> None:
    first = command("dead", "replay", str(jobs[0]))
    assert first["jobs"][0]["job"] == str(jobs[0])
    assert first["jobs"][0]["created"] is True
    some = command("dead", "replay", "--code", "rate_limited")
    assert listed(some) == {jobs[1]}
    rest = command("dead", "replay", "--all")
    assert listed(rest) == {jobs[2]}
    assert command("dead", "replay", "--all") == {"jobs": [], "gone": [], "follow": []}
    assert count(root, "jobs") == 6
    assert listed(command("dead", "list")) == set()
    assert listed(command("dead", "list", "--replayed")) == set(jobs)
    for wrong in ((), (str(jobs[0]), "--all"), ("--all", "--owner", "ann")):
        assert command("dead", "replay", *wrong, code=2)["error"]["code"] == "usage"


def test_a_job_without_payload_is_reported_and_the_others_are_replayed(
    command: Command, jobs: list[UUID], root: Root
) -> None:
    root.execute("DELETE FROM vestry.private_payloads WHERE job_id = %s", [jobs[0]])
    answer = command("dead", "replay", "--all", code=1)
    assert answer["gone"] == [str(jobs[0])]
    assert listed(answer) == set(jobs[1:])


def test_degraded_jobs_are_listed_and_replayed(
    command: Command, vestry: Vestry, conn: psycopg.Connection[Any], root: Root, clean: DevStack
) -> None:
    made = vestry.enqueue_many(conn, [HELLO] * 2, owner="ann", privacy="shareable")
    conn.commit()
    for job in made:
        succeed(root, KeyRing.load(clean.keyring), job.id, {"vectors": [], "space": "s"})
    root.execute("UPDATE vestry.jobs SET degraded = true WHERE id = %s", [made[1].id])
    assert listed(command("status", "--degraded")) == {made[1].id}
    assert listed(command("rerun", "--owner", "ben")) == set()
    assert listed(command("rerun", "--all")) == {made[1].id}
    assert listed(command("status", "--degraded")) == set()
    assert command("rerun", code=2)["error"]["code"] == "usage"
