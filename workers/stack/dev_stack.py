"""The embedded stack without its workers: Postgres, Valkey, roles, schema, keys.

Used by `vestry up` through its parts, and whole by tests and benchmarks:

    with DevStack(Path("/some/private/dir")) as stack:
        psycopg.connect(stack.database_url("vestry_producer"))
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, Self

import psycopg
from psycopg import sql

from models.bootstrap import PRODUCER, ROLES, SCHEMA_OWNER
from vestry.crypto.keyring import COMMAND
from workers.home import CHECKOUT, Home
from workers.stack.postgres import DATABASE, SUPERUSER, PostgresServer
from workers.stack.process import Command, spawn, stop
from workers.stack.valkey import ValkeyServer

START_TIMEOUT_S = 60.0
"""Also the longest crash recovery that is waited for."""


class Server(Protocol):
    """What PostgresServer and ValkeyServer have in common."""

    log: Path

    def prepare(self) -> Command:
        """Make ready to start; the command."""
        ...

    def ready(self) -> bool:
        """Whether it answers."""
        ...


class DevStack:
    """Postgres and Valkey in a private directory, migrated and ready for clients.

    Args:
        home: the private directory; made where it is missing.
    """

    def __init__(self, home: Path) -> None:
        self._home = Home(home)
        self._running: list[tuple[subprocess.Popen[bytes], Command]] = []

    @property
    def home(self) -> Path:
        """The private directory."""
        return self._home.path

    @property
    def keyring(self) -> Path:
        """The 0600 file with the key-encryption keys."""
        return self._home.keyring

    @property
    def superuser_url(self) -> str:
        """Login of the cluster's superuser to the database, password included."""
        return self.postgres.url(SUPERUSER)

    def database_url(self, role: str = PRODUCER) -> str:
        """Login of a role of models/bootstrap.py, password included."""
        return self.postgres.url(role)

    def broker_url(self, user: str) -> str:
        """Login of a Valkey user (private, shareable, dispatcher), password included."""
        return self.valkey.url(user)

    def start(self) -> Self:
        """Start both servers and bring roles and schema up to date.

        Raises:
            HomeInUseError: another stack runs in this home.
            RuntimeError: a server did not start; the message names its log.
        """
        self._home.create()
        self._home.lock()
        try:
            self.postgres = PostgresServer(self._home)
            self.valkey = ValkeyServer(self._home)
            for server in (self.postgres, self.valkey):
                self._start(server)
            prepare_database(self.postgres)
            ensure_keyring(self._home)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop both servers; nothing of them is left but their data. Safe to repeat."""
        while self._running:
            process, command = self._running.pop()
            stop(process, command)
        self._home.unlock()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start(self, server: Server) -> None:
        command = server.prepare()
        process = spawn(command)
        self._running.append((process, command))
        wait_until(server.ready, lambda: process.poll() is None, server.log)


def wait_until(ready: Callable[[], bool], alive: Callable[[], bool], log: Path) -> None:
    """Wait for a process to be ready.

    Raises:
        RuntimeError: it ended first, or START_TIMEOUT_S passed; the message names its log.
    """
    until = time.monotonic() + START_TIMEOUT_S
    while not ready():
        if not alive():
            raise RuntimeError(f"it ended before it was ready; see {log}")
        if time.monotonic() > until:
            raise RuntimeError(f"it was not ready within {START_TIMEOUT_S:.0f} s; see {log}")
        time.sleep(0.02)


def prepare_database(postgres: PostgresServer) -> bool:
    """Bring roles, passwords, extension and schema up to date.

    What was done last time is remembered with the database itself, so that a start with nothing
    changed costs two queries.

    Returns:
        Whether anything had to be done.
    """
    passwords = {role: postgres.home.password(f"postgres.{role}") for role in ROLES}
    fingerprint = _fingerprint(passwords)
    with psycopg.connect(postgres.url(SUPERUSER, "postgres"), autocommit=True) as conn:
        found = conn.execute(
            "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s",
            [DATABASE],
        ).fetchone()
        if found is not None and found[0] == fingerprint:
            return False
        if found is None:
            conn.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))

    # Imported here: a start with nothing to do needs neither SQLAlchemy nor Alembic.
    from models.bootstrap import bootstrap, migrate  # noqa: PLC0415

    with psycopg.connect(postgres.url(SUPERUSER), autocommit=True) as conn:
        bootstrap(conn, passwords)
        migrate(postgres.url(SCHEMA_OWNER))
        conn.execute(
            sql.SQL("COMMENT ON DATABASE {} IS {}").format(
                sql.Identifier(DATABASE), sql.Literal(fingerprint)
            )
        )
    return True


def ensure_keyring(home: Home) -> None:
    """Make the key ring, unless there is one: a second would open nothing of the first's."""
    if not home.keyring.exists() and not os.environ.get(COMMAND):
        from vestry.crypto.keyring import KeyRing  # noqa: PLC0415 - light starts stay light

        KeyRing.generate(home.keyring)


def _fingerprint(passwords: dict[str, str]) -> str:
    """Of all that bootstrap and migrations depend on. Passwords are random, so a digest is safe."""
    digest = hashlib.sha256()
    files = [CHECKOUT / "models" / "bootstrap.py"]
    files += sorted(
        path for path in (CHECKOUT / "migrations").rglob("*") if path.suffix in {".py", ".sql"}
    )
    for path in files:
        digest.update(str(path.relative_to(CHECKOUT)).encode() + b"\0" + path.read_bytes())
    for role, password in sorted(passwords.items()):
        digest.update(f"{role}\0{password}\0".encode())
    return f"vestry bootstrap {digest.hexdigest()}"
