"""The embedded stack without its workers: Postgres, Valkey, roles, schema, key ring.

`vestry up` uses its parts; tests and benchmarks use it whole:

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
"""Includes crash recovery."""


class Server(Protocol):
    """Common interface of PostgresServer and ValkeyServer."""

    log: Path

    def prepare(self) -> Command:
        """Prepare a start; returns the command that starts it."""
        ...

    def ready(self) -> bool:
        """Whether it answers."""
        ...


class DevStack:
    """Postgres and Valkey in a home, migrated and ready for clients.

    Args:
        home: the data directory; created if it is missing.

    Attributes:
        processes: the running servers with their commands.
    """

    broker_class: type[ValkeyServer] = ValkeyServer

    def __init__(self, home: Path) -> None:
        self._home = Home(home)
        self.processes: list[tuple[subprocess.Popen[bytes], Command]] = []

    @property
    def home(self) -> Path:
        """The data directory."""
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
            self.valkey = self.broker_class(self._home)
            for server in (self.postgres, self.valkey):
                self._start(server)
            prepare_database(self.postgres)
            ensure_keyring(self._home)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop both servers. Safe to repeat."""
        while self.processes:
            process, command = self.processes.pop()
            stop(process, command)
        self._home.unlock()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start(self, server: Server) -> None:
        command = server.prepare()
        process = spawn(command)
        self.processes.append((process, command))
        wait_until(server.ready, lambda: process.poll() is None, server.log)


def wait_until(ready: Callable[[], bool], alive: Callable[[], bool], log: Path) -> None:
    """Wait for a process to be ready.

    Raises:
        RuntimeError: it ended first, or START_TIMEOUT_S passed; the message names its log.
    """
    until = time.monotonic() + START_TIMEOUT_S
    while not ready():
        if not alive():
            raise RuntimeError(f"the process ended before it was ready; see {log}")
        if time.monotonic() > until:
            raise RuntimeError(f"the process was not ready in {START_TIMEOUT_S:.0f} s; see {log}")
        time.sleep(0.02)


def prepare_database(postgres: PostgresServer) -> bool:
    """Bring roles, passwords, extension and schema up to date.

    A fingerprint of them is stored as the database's comment, so that a start without changes costs
    two queries.

    Returns:
        Whether anything was changed.
    """
    passwords = {role: postgres.home.password(f"postgres.{role}") for role in ROLES}
    fingerprint = _fingerprint(passwords)
    with psycopg.connect(postgres.url(SUPERUSER, "postgres"), autocommit=True) as conn:
        comment = conn.execute(
            "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s",
            [DATABASE],
        ).fetchone()
        if comment is not None and comment[0] == fingerprint:
            return False
        if comment is None:
            conn.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))

    # Imported here: a start without changes needs neither SQLAlchemy nor Alembic.
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
    """Create the key ring if there is none: a new one cannot decrypt content of an earlier one."""
    if not home.keyring.exists() and not os.environ.get(COMMAND):
        from vestry.crypto.keyring import KeyRing  # noqa: PLC0415 - not needed by most starts

        KeyRing.generate(home.keyring)


def _fingerprint(passwords: dict[str, str]) -> str:
    """Digest of the inputs of bootstrap and migrations. Passwords are random, so a digest is safe."""
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
