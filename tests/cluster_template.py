"""One migrated Postgres cluster for a test run, copied into the home of each new stack.

`initdb`, roles and schema take 1.7 s of processor time, a copy takes 0.1 s. The first process of the
run that needs the cluster creates it, under a lock; it is copied only while no server runs on it. A
copy has the template's Postgres passwords, and its own key ring, ports and broker passwords.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.run_dir import TEMPLATE, locked, run_dir, timed_start
from tests.temp_stack_dir import temporary_home
from workers.home import Home
from workers.stack.dev_stack import prepare_database, wait_until
from workers.stack.postgres import PostgresServer
from workers.stack.process import spawn, stop


@contextmanager
def migrated_home(prefix: str = "vestry-test-") -> Iterator[Path]:
    """A temporary home whose database is migrated already."""
    with temporary_home(prefix) as home:
        copy_cluster(home)
        yield home


def copy_cluster(home: Path) -> None:
    """Copy the run's cluster and its passwords into a new home; a no-op outside a test run."""
    directory = run_dir()
    if directory is None:
        return
    template, data = _template(directory)
    with timed_start("copies of the migrated cluster"):
        target = Home(home)
        target.create()
        # `cp -a` keeps the owner: under root the cluster belongs to the servers' account.
        subprocess.run(["cp", "-a", str(data), str(PostgresServer(target).data)], check=True)
        for password in template.secrets.glob("postgres.*.password"):
            shutil.copy2(password, target.secrets)


def _template(directory: Path) -> tuple[Home, Path]:
    """Home and data directory of the migrated cluster, created on first use; no server runs on it."""
    home, ready = Home(directory / TEMPLATE), directory / f"{TEMPLATE}.ready"
    with locked(TEMPLATE):
        if not ready.exists():
            with timed_start("the migrated cluster"):
                home.create()
                postgres = PostgresServer(home)
                _migrate(postgres)
            ready.write_text(str(postgres.data))
    return home, Path(ready.read_text())


def _migrate(postgres: PostgresServer) -> None:
    command = postgres.prepare()
    process = spawn(command)
    try:
        wait_until(postgres.ready, lambda: process.poll() is None, postgres.log)
        prepare_database(postgres)
    finally:
        stop(process, command)
