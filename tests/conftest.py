"""Servers of the tests' own: one embedded stack a session, without workers, emptied on request."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis
from hypothesis import HealthCheck, settings

from tests import leak_check
from tests.llama import Llama, llama_server
from tests.temp_stack_dir import temporary_home
from workers.settings import key_prefix
from workers.stack.dev_stack import DevStack
from workers.stack.valkey import PRIVACIES

# No property is about time, and on a busy machine any example may stand still for a while.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Everything lies below one directory during the run; nothing of it is there afterwards."""
    root = Path(tempfile.mkdtemp(prefix="vestry-tests-")).resolve()
    if os.geteuid() == 0:
        root.chmod(0o711)  # the servers' account passes through
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(root))
        patch.setattr(tempfile, "tempdir", str(root))
        # Stacks of tests use what the tests give them, and nothing they might find on this machine.
        patch.setenv("VESTRY_OLLAMA", "off")
        patch.setenv("VESTRY_LLAMA", "off")
        yield
        processes = leak_check.processes(root)
        told = [f"{process.pid} {process.name()}" for process in processes]
        for process in processes:
            process.kill()
        places = leak_check.places(root)
        for path in (*places, root):
            shutil.rmtree(path, ignore_errors=True)
    assert (told, places) == ([], []), "the tests left processes, or servers' data"


@pytest.fixture(scope="session")
def stack() -> Iterator[DevStack]:
    """Postgres and Valkey on free ports, roles and schema in place, no workers.

    `stack.database_url(role)`, `stack.superuser_url`, `stack.broker_url(user)`, `stack.home`,
    `stack.keyring`.
    """
    with temporary_home() as home, DevStack(home) as running:
        yield running


@pytest.fixture(scope="session")
def llama() -> Iterator[Llama]:
    """A real llama.cpp server with the packaged model."""
    with llama_server() as server:
        yield server


@pytest.fixture
def clean(stack: DevStack) -> DevStack:
    """The stack with every table of Vestry's empty, every lane fresh, and the broker empty."""
    with psycopg.connect(stack.superuser_url, autocommit=True) as conn:
        empty_tables(conn)
    for user in PRIVACIES:
        with redis.Redis.from_url(stack.broker_url(user)) as broker:
            for key in broker.scan_iter(match=f"{key_prefix(user)}*", count=1000):
                broker.delete(key)
    return stack


def empty_tables(conn: psycopg.Connection[tuple[object, ...]]) -> None:
    """Empty every table but the lanes and Alembic's, and drop the partitions of spaces.

    A failed test may have left a session holding locks: it is ended first.
    """
    conn.execute(
        """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
           WHERE datname = current_database() AND pid <> pg_backend_pid()
             AND state LIKE 'idle in transaction%'"""
    )
    partitions = conn.execute(
        """SELECT format('%I.%I', n.nspname, c.relname) FROM pg_inherits i
           JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_namespace n ON n.oid = c.relnamespace
           WHERE i.inhparent = 'vestry.shareable_embeddings'::regclass"""
    ).fetchall()
    for (partition,) in partitions:
        conn.execute(f"DROP TABLE {partition}")
    tables = conn.execute(
        """SELECT string_agg(format('%I.%I', schemaname, tablename), ', ') FROM pg_tables
           WHERE schemaname = 'vestry' AND tablename NOT IN ('lanes', 'alembic_version')"""
    ).fetchone()
    assert tables is not None
    conn.execute(f"TRUNCATE {tables[0]} RESTART IDENTITY")
    conn.execute("UPDATE vestry.lanes SET turn = 0, paused_at = NULL")
