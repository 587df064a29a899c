"""The laboratory's Postgres and Valkey, and the faults of these servers."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from types import MappingProxyType
from typing import Any, Final

import psycopg
import redis
from psycopg import sql

from models.bootstrap import CONTROL, PRIVATE_WORKER, PRODUCER, SHAREABLE_WORKER
from tests.faults import messages
from workers.stack import dev_stack
from workers.stack.dev_stack import DevStack
from workers.stack.process import Command
from workers.stack.valkey import ValkeyServer

ADMINISTRATOR: Final = "laboratory"
"""A broker user with all permissions; the system's users may not even flush."""
LIMITED: Final = (PRIVATE_WORKER, SHAREABLE_WORKER, CONTROL, PRODUCER)
UNFINISHED: Final = "SELECT count(*) FROM vestry.jobs WHERE finished_at IS NULL"
JOB_CRASHED_ONCE: Final = """SELECT EXISTS (SELECT FROM vestry.jobs
  WHERE crashes >= 1 AND finished_at IS NULL)"""
"""Whether an unfinished job has crashed once in an exclusive run; a second crash makes it dead."""


class OpenValkey(ValkeyServer):
    """The broker, with a user for the laboratory."""

    extra_users = MappingProxyType({ADMINISTRATOR: "~* &* +@all"})


class LabStack(DevStack):
    """A stack without workers whose servers can be killed, stopped and started."""

    broker_class = OpenValkey

    def restart_postgres(self) -> None:
        """Restart Postgres by an immediate shutdown: sessions are cut, the start runs recovery."""
        self._restart(self.postgres, signal.SIGQUIT)

    def ensure_postgres(self) -> None:
        """Start Postgres if it has ended or is ending; return once it accepts connections."""
        process, _ = self._process(self.postgres)
        until = time.monotonic() + dev_stack.START_TIMEOUT_S
        while process.poll() is None and not self.postgres.ready():
            if time.monotonic() > until:
                raise RuntimeError("Postgres neither accepts connections nor ends")
            time.sleep(0.05)
        if process.poll() is not None:
            self._restart(self.postgres, signal.SIGQUIT)

    def restart_broker(self) -> None:
        """Kill the broker and start it empty."""
        self._restart(self.valkey, signal.SIGKILL)

    def broker_pid(self) -> int:
        """The broker's process id."""
        return self._process(self.valkey)[0].pid

    def _restart(self, server: Any, number: signal.Signals) -> None:
        process, command = self._process(server)
        process.send_signal(number)
        process.wait()
        self.processes.remove((process, command))
        self._start(server)

    def _process(self, server: Any) -> tuple[subprocess.Popen[bytes], Command]:
        return next(pair for pair in self.processes if pair[1].log == server.log)


def administrator(url: str, home_password: str) -> redis.Redis:
    """A client of the laboratory's broker user."""
    host = url.rpartition("@")[2]
    return redis.Redis.from_url(
        f"redis://{ADMINISTRATOR}:{home_password}@{host}",
        socket_timeout=2,
        socket_connect_timeout=2,
    )


def terminate_backends(superuser_url: str, rng: random.Random, share: float) -> int:
    """End a share of the system's sessions; returns how many."""
    with psycopg.connect(superuser_url, autocommit=True) as conn:
        pids = [
            row[0]
            for row in conn.execute(
                "SELECT pid FROM pg_stat_activity WHERE usename LIKE 'vestry%' ORDER BY pid"
            )
        ]
        chosen = [pid for pid in pids if rng.random() < share]
        conn.execute("SELECT pg_terminate_backend(pid) FROM unnest(%s::int[]) pid", [chosen])
        return len(chosen)


def limit_connections(superuser_url: str, limit: int) -> None:
    """Set the connection limit of each of the system's roles; -1 for none."""
    with psycopg.connect(superuser_url, autocommit=True) as conn:
        for role in LIMITED:
            conn.execute(
                sql.SQL("ALTER ROLE {} CONNECTION LIMIT {}").format(
                    sql.Identifier(role), sql.Literal(limit)
                )
            )


def hold_snapshot(superuser_url: str) -> psycopg.Connection[Any]:
    """Open a transaction with a snapshot, which prevents the removal of dead rows."""
    conn = psycopg.connect(superuser_url, application_name="a dump")
    conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    conn.execute("SELECT count(*) FROM vestry.jobs")
    return conn


def random_job_ids(superuser_url: str) -> list[str]:
    """Ids of up to 100 jobs in any state."""
    with psycopg.connect(superuser_url, autocommit=True) as conn:
        rows = conn.execute("SELECT id::text FROM vestry.jobs ORDER BY random() LIMIT 100")
        return [row[0] for row in rows]


class ServerFaults:
    """Faults of the servers, one at a time, each of limited duration.

    Args:
        stack: the servers.
        rng: of all choices.
    """

    def __init__(self, stack: LabStack, rng: random.Random) -> None:
        self._stack = stack
        self._rng = rng
        self._until = 0.0
        self._end: Any = None
        self._broker = administrator(
            stack.broker_url("private"), stack.valkey.home.password(f"valkey.{ADMINISTRATOR}")
        )
        self.forged = 0

    @property
    def busy(self) -> bool:
        """Whether a fault is in progress."""
        return self._end is not None

    def faults(self) -> dict[str, Any]:
        """Name to a function that begins the fault; it returns duration and end function, or None."""
        return {
            "postgres restarts": self._stack.restart_postgres,
            "the broker is emptied": self._flush,
            "the broker restarts empty": self._stack.restart_broker,
            "the broker hangs": self._stop_broker,
            "sessions are ended": self._end_sessions,
            "connections run out": self._limit_connections,
            "a snapshot is held": self._hold_snapshot,
            "messages are forged": self._forge,
        }

    def begin(self, name: str) -> None:
        """Begin a fault."""
        lasting = self.faults()[name]()
        if lasting is not None:
            seconds, self._end = lasting
            self._until = time.monotonic() + seconds

    def end_if_due(self, *, now: bool = False) -> bool:
        """End the fault in progress once its duration has passed; whether it ended."""
        if self._end is None or (time.monotonic() < self._until and not now):
            return False
        self._end()
        self._end = None
        return True

    def _flush(self) -> None:
        self._broker.flushall()

    def _stop_broker(self) -> Any:
        pid = self._stack.broker_pid()
        os.kill(pid, signal.SIGSTOP)
        return self._rng.uniform(1.0, 3.0), lambda: os.kill(pid, signal.SIGCONT)

    def _end_sessions(self) -> None:
        terminate_backends(self._stack.superuser_url, self._rng, 0.5)

    def _limit_connections(self) -> Any:
        url = self._stack.superuser_url
        limit_connections(url, 2)
        terminate_backends(url, self._rng, 0.7)
        return self._rng.uniform(0.5, 1.5), lambda: limit_connections(url, -1)

    def _hold_snapshot(self) -> Any:
        conn = hold_snapshot(self._stack.superuser_url)
        return self._rng.uniform(3.0, 6.0), conn.close

    def _forge(self) -> None:
        ids = random_job_ids(self._stack.superuser_url)
        self.forged += messages.forge(self._broker, self._rng, ids)
