"""`python -m workers.migrate` on a database of its own, as compose.yaml runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from models.bootstrap import PRODUCER, ROLES, bootstrap
from workers.stack.dev_stack import DevStack

DATABASE = "migrated"


@pytest.fixture
def database(stack: DevStack) -> Iterator[str]:
    """An empty database in the tests' cluster: the superuser's connection string."""
    with psycopg.connect(stack.superuser_url, autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {DATABASE}")
        try:
            yield make_conninfo(stack.superuser_url, dbname=DATABASE)
        finally:
            conn.execute(f"DROP DATABASE {DATABASE} WITH (FORCE)")


@pytest.fixture
def secrets(stack: DevStack, tmp_path: Path) -> Path:
    """One file per role. Roles belong to the whole cluster, so their passwords are unchanged."""
    for role in ROLES:
        password = conninfo_to_dict(stack.database_url(role))["password"]
        (tmp_path / role).write_text(f"{password}\n", encoding="utf-8")
    return tmp_path


def migrate(**variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "workers.migrate"],
        env={"PATH": os.environ["PATH"], **variables},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_migrate_creates_the_schema_and_is_idempotent(
    stack: DevStack, database: str, secrets: Path
) -> None:
    parts = conninfo_to_dict(database)
    (secrets / "admin").write_text(f"{parts['password']}\n", encoding="utf-8")
    url = f"postgresql://{parts['user']}@{parts['host']}:{parts['port']}/{DATABASE}"
    for _ in range(2):
        done = migrate(
            VESTRY_ADMIN_URL=url,
            VESTRY_ADMIN_PASSWORD_FILE=str(secrets / "admin"),
            VESTRY_ROLE_SECRETS=str(secrets),
        )
        assert done.returncode == 0, done.stderr
    producer = make_conninfo(stack.database_url(PRODUCER), dbname=DATABASE)
    with psycopg.connect(producer) as conn:
        lanes = conn.execute("SELECT count(*) FROM vestry.lanes").fetchone()
    assert lanes == (10,)


def test_bootstrap_logs_no_password(stack: DevStack) -> None:
    passwords = {
        role: str(conninfo_to_dict(stack.database_url(role))["password"]) for role in ROLES
    }
    notices: list[str] = []
    with psycopg.connect(stack.superuser_url, autocommit=True) as conn:
        # The session receives as notices what the server logs.
        conn.execute("SET log_statement = 'ddl'")
        conn.execute("SET client_min_messages = 'log'")
        conn.add_notice_handler(lambda notice: notices.append(notice.message_primary or ""))
        bootstrap(conn, passwords)
    logged = "\n".join(notices)
    assert all(role in logged for role in ROLES)
    assert not [role for role, password in passwords.items() if password in logged]
    for role in ROLES:
        psycopg.connect(stack.database_url(role)).close()


def test_missing_password_is_one_clear_line(database: str, secrets: Path) -> None:
    (secrets / PRODUCER).unlink()
    done = migrate(VESTRY_ADMIN_URL=database, VESTRY_ROLE_SECRETS=str(secrets))
    assert done.returncode == 1
    assert PRODUCER in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            "UPDATE pg_extension SET extversion = '0.8.2' WHERE extname = 'vector'",
            "migrate: pgvector is 0.8.2, and 0.8.3 or newer is needed",
        ),
        (
            "UPDATE vestry.alembic_version SET version_num = '9999_newer'",
            "migrate: the database's schema is at revision 9999_newer, which this version",
        ),
    ],
)
def test_unsupported_database_is_refused_with_one_line(
    database: str, secrets: Path, change: str, sentence: str
) -> None:
    settings = {"VESTRY_ADMIN_URL": database, "VESTRY_ROLE_SECRETS": str(secrets)}
    assert migrate(**settings).returncode == 0
    with psycopg.connect(database) as conn:
        conn.execute(change)
    done = migrate(**settings)
    assert done.returncode == 1
    assert done.stderr.startswith(sentence)
    assert len(done.stderr.splitlines()) == 1


def test_concurrent_runs_succeed(database: str, secrets: Path) -> None:
    settings = {"VESTRY_ADMIN_URL": database, "VESTRY_ROLE_SECRETS": str(secrets)}
    with ThreadPoolExecutor(3) as executor:
        runs = [executor.submit(migrate, **settings) for _ in range(3)]
    assert [(run.result().returncode, run.result().stderr) for run in runs] == [(0, "")] * 3


def test_operator_errors_are_one_clear_line(stack: DevStack, database: str, secrets: Path) -> None:
    settings = {"VESTRY_ADMIN_URL": database, "VESTRY_ROLE_SECRETS": str(secrets)}
    assert migrate(**settings).returncode == 0
    with psycopg.connect(database) as conn:
        conn.execute("DROP TABLE vestry.alembic_version")
    for url, sentence in (
        (database, "the schema vestry has objects but no table alembic_version"),
        (make_conninfo(database, password="wr0ng"), "login of VESTRY_ADMIN_URL was refused"),
        (
            make_conninfo(database, dbname="absent"),
            "the database of VESTRY_ADMIN_URL does not exist",
        ),
        (
            make_conninfo(stack.database_url(PRODUCER), dbname=DATABASE),
            "login of VESTRY_ADMIN_URL may not create roles",
        ),
        (
            make_conninfo(database, options="-c default_transaction_read_only=on"),
            "the database is read-only",
        ),
    ):
        done = migrate(**settings | {"VESTRY_ADMIN_URL": url})
        assert done.returncode == 1
        assert sentence in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_missing_setting_is_one_clear_line() -> None:
    done = migrate()
    assert (done.returncode, done.stderr) == (1, "migrate: VESTRY_ADMIN_URL is not set\n")
