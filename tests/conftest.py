"""The run directory, the leak check, and servers that tests share."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import psycopg
import pytest
import redis
from hypothesis import HealthCheck, settings

from tests import leak_check, run_dir
from tests.cluster_template import migrated_home
from tests.llama_server import Llama, llama_server
from tests.quick_stack import quick_servers
from tests.stacks import POOL, declared_stack
from workers.settings import key_prefix
from workers.stack.dev_stack import DevStack
from workers.stack.server_dir import remove
from workers.stack.valkey import PRIVACIES

# No property depends on time, and on a busy machine any example may be slow.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

CREATED_RUN_DIR = pytest.StashKey[Path]()
"""The run directory, in the process that created it."""


def pytest_configure(config: pytest.Config) -> None:
    """Create the run directory, in the first process of a run."""
    if run_dir.run_dir() is None:
        config.stash[CREATED_RUN_DIR] = run_dir.create()


def pytest_unconfigure(config: pytest.Config) -> None:
    if (created := config.stash.get(CREATED_RUN_DIR, None)) is not None:
        remove(created / run_dir.TEMPLATE)
        shutil.rmtree(created, ignore_errors=True)
        del os.environ[run_dir.VARIABLE]


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if CREATED_RUN_DIR in config.stash:
        for kind, times in run_dir.start_times().items():
            terminalreporter.write_line(f"{sum(times):7.1f} s for {len(times):3} starts: {kind}")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, None, None]:
    """Stop a declared stack after its last test and the teardown of that test's fixtures."""
    yield
    if nextitem is None or declared_stack(nextitem) != declared_stack(item):
        POOL.close()


@pytest.fixture(scope="session", autouse=True)
def no_leaks() -> Iterator[None]:
    """Keep processes and data of this process's tests below one directory; assert that none remain."""
    root = Path(tempfile.mkdtemp(prefix="process-", dir=run_dir.run_dir())).resolve()
    if os.geteuid() == 0:
        root.chmod(0o711)  # the servers' account must traverse it
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(root))
        patch.setattr(tempfile, "tempdir", str(root))
        # Stacks use the models that a test configures, not servers discovered on this machine.
        patch.setenv("VESTRY_OLLAMA", "off")
        patch.setenv("VESTRY_LLAMA", "off")
        yield
        POOL.close()
        processes = leak_check.processes(root)
        leaked = [f"{process.pid} {process.name()}" for process in processes]
        for process in processes:
            process.kill()
        directories = leak_check.server_dirs(root)
        for path in (*directories, root):
            shutil.rmtree(path, ignore_errors=True)
    assert (leaked, directories) == ([], []), "the tests leaked processes or servers' data"


@pytest.fixture(scope="session")
def stack() -> Iterator[DevStack]:
    """Postgres and Valkey on free ports, with roles and schema, without workers.

    `stack.database_url(role)`, `stack.superuser_url`, `stack.broker_url(user)`, `stack.home`,
    `stack.keyring`.
    """
    with migrated_home() as home, quick_servers(home) as running:
        yield running


@pytest.fixture(scope="session")
def llama() -> Iterator[Llama]:
    """A real llama.cpp server with the packaged model."""
    with llama_server() as server:
        yield server


@pytest.fixture
def clean(stack: DevStack) -> DevStack:
    """The stack with empty tables, lanes in their initial state, and an empty broker."""
    with psycopg.connect(stack.superuser_url, autocommit=True) as conn:
        empty_tables(conn)
    for user in PRIVACIES:
        with redis.Redis.from_url(stack.broker_url(user)) as broker:
            for key in broker.scan_iter(match=f"{key_prefix(user)}*", count=1000):
                broker.delete(key)
    return stack


def empty_tables(conn: psycopg.Connection[tuple[object, ...]]) -> None:
    """Empty every table but the lanes and Alembic's, and drop the partitions of spaces.

    Sessions that a failed test left in a transaction are terminated first: they may hold locks.
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
    conn.execute("UPDATE vestry.lanes SET virtual_time = 0, paused_at = NULL")
