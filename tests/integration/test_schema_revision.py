"""A schema of another revision is refused, by each process at its start and by `vestry doctor`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from models.bootstrap import CONTROL, SHAREABLE_WORKER
from vestry.cli.doctor.checks import database
from vestry.db.schema_revision import SCHEMA_REVISION
from vestry.settings import ClientSettings
from workers.stack.dev_stack import DevStack

OLDER = "0000_older"


@pytest.fixture
def outdated(clean: DevStack) -> Iterator[DevStack]:
    """The stack with a schema marked as an older revision."""
    change = "UPDATE vestry.alembic_version SET version_num = %s"
    with psycopg.connect(clean.superuser_url, autocommit=True) as conn:
        conn.execute(change, [OLDER])
        try:
            yield clean
        finally:
            conn.execute(change, [SCHEMA_REVISION])


def checks(stack: DevStack) -> dict[str, tuple[bool, str]]:
    """The outcome and the detail of doctor's checks of the database."""
    settings = ClientSettings(stack.database_url(), None)
    return {check.name: (check.ok, check.detail) for check in database(settings)}


def test_doctor_accepts_the_revision_of_this_version(clean: DevStack) -> None:
    assert checks(clean)["migrations"] == (True, f"schema revision {SCHEMA_REVISION}")


def test_doctor_refuses_an_older_revision(outdated: DevStack) -> None:
    ok, detail = checks(outdated)["migrations"]
    assert not ok
    assert OLDER in detail
    assert "python -m workers.migrate" in detail


def test_doctor_refuses_an_older_pgvector(clean: DevStack) -> None:
    change = "UPDATE pg_extension SET extversion = %s WHERE extname = 'vector'"
    query = "SELECT extversion FROM pg_extension WHERE extname = 'vector'"
    with psycopg.connect(clean.superuser_url, autocommit=True) as conn:
        (installed,) = conn.execute(query).fetchone() or ("",)
        assert checks(clean)["pgvector"] == (True, installed)
        conn.execute(change, ["0.8.2"])
        try:
            ok, detail = checks(clean)["pgvector"]
        finally:
            conn.execute(change, [installed])
    assert not ok
    assert "0.8.2" in detail
    assert "ALTER EXTENSION vector UPDATE" in detail


@pytest.mark.parametrize(
    ("process", "role", "user"),
    [
        ("dispatcher", CONTROL, "dispatcher"),
        ("reconciler", CONTROL, "dispatcher"),
        ("worker", SHAREABLE_WORKER, "shareable"),
    ],
)
def test_process_refuses_an_older_revision_with_one_line(
    outdated: DevStack, tmp_path: Path, process: str, role: str, user: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"workers.{process}"],
        env={
            "PATH": os.environ["PATH"],
            "TMPDIR": str(tmp_path),
            "VESTRY_DATABASE_URL": outdated.database_url(role),
            "VESTRY_BROKER_URL": outdated.broker_url(user),
            "VESTRY_PRIVACY": "shareable",
            "VESTRY_LANES": "shareable.bulk.gpu" if process == "worker" else "",
            "VESTRY_EMBEDDING_BACKEND": "echo",
            "VESTRY_LOG_LEVEL": "WARNING",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1, done.stderr
    last = done.stderr.splitlines()[-1]
    assert OLDER in last
    assert "python -m workers.migrate" in last
    assert "Traceback" not in done.stderr
