"""Database connections of worker processes: options, pool, deadlines, reconnecting loops.

Every wait is bounded below half a lease. The server enforces `statement_timeout`, which does not help a
client whose statement never arrived: behind a proxy or load balancer that has lost its own connection,
TCP keepalives are answered and the client would wait for ever. `deadline` shuts down the socket of such
a connection, and the wait fails as for any lost connection.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg
from psycopg_pool import ConnectionPool

from models.claims import PLANNER_OPTIONS
from vestry.db.schema_revision import read_revision, revision_fault
from workers.settings import Settings

Connection = psycopg.Connection[Any]
log = logging.getLogger(__name__)

CONNECTION_ERRORS = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    psycopg.errors.TransactionTimeout,
    psycopg.errors.IdleInTransactionSessionTimeout,
    psycopg.errors.ReadOnlySqlTransaction,
)
"""Errors of the connection, not of the statement: the database is unavailable, has ended the session of
a frozen process, or has become a standby. The last three are no `OperationalError`."""
POOL_RECONNECT_S = 2.0
"""How long the pool retries a lost connection. Its back-off doubles without bound; after this the next
request for a connection tries again at once."""
DEADLINE_CHECK_S: Final = 0.5
MIN_DEADLINE_S: Final = 3.0
"""Shortest deadline: on a busy machine, answers are slow."""
IDLE_SESSION_TIMEOUT_S = 10.0
"""The server ends a dispatcher's or reconciler's session that is idle for this long; each sends a
statement every second. The session may hold an advisory lock that others wait for, while its process is
frozen, or unreachable behind a proxy."""
LOOP_DEADLINE_S = 20.0
"""Deadline of one round of a dispatcher or reconciler, calls to the broker included."""
MAX_RECONNECT_PAUSE_S = 2.0
"""Longest pause between two attempts to connect. After an outage a lost job waits for this, one lease
of grace and one `poll_s`; the guarantee is one lease and five seconds."""


def connection_options(name: str, lease_s: float, idle_s: float = 0.0) -> dict[str, Any]:
    """Connection arguments for psycopg.

    Statement, idle-in-transaction and TCP timeouts are at most half a lease, so that a wait on a dead
    connection fails before the lease expires. Keepalives of the server detect a dead client, whose
    locks would outlive it. A transaction may take one lease: within a pipeline, which most use, a
    session with a frozen client does not count as idle.

    Args:
        name: shown in pg_stat_activity.
        lease_s: the lease, in seconds.
        idle_s: idle_session_timeout in seconds; 0 for none.
    """
    half = max(1.0, lease_s / 2)
    return {
        "application_name": f"vestry-{name}",
        "connect_timeout": 5,
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
        "tcp_user_timeout": int(half * 1000),
        "options": (
            f"-c statement_timeout={int(half * 1000)} -c lock_timeout={int(half * 500)} "
            f"-c idle_in_transaction_session_timeout={int(half * 1000)} -c timezone=UTC "
            f"-c transaction_timeout={int(max(MIN_DEADLINE_S, lease_s) * 1000)} "
            f"-c idle_session_timeout={int(idle_s * 1000)} -c tcp_keepalives_idle=5 "
            "-c tcp_keepalives_interval=2 -c tcp_keepalives_count=3 "
            f"{PLANNER_OPTIONS}"
        ),
    }


def check_connection(conn: Connection) -> None:
    """Raise `psycopg.OperationalError` for a connection that the server has closed.

    Costs no round trip: an idle connection is readable only if it was closed.
    """
    readable, _, broken = select.select([conn.fileno()], [], [conn.fileno()], 0)
    if readable or broken:
        ConnectionPool.check_connection(conn)


def check_schema(conn: Connection) -> None:
    """End the process, with one sentence, unless the schema has the revision that it needs.

    Raises:
        SystemExit: the schema has another revision.
    """
    fault = revision_fault(read_revision(conn))
    if fault is not None:
        raise SystemExit(fault)


def wait_for_database(pool: ConnectionPool[Connection]) -> None:
    """Wait, without limit, for the pool's first working connection, and check the schema.

    Raises:
        SystemExit: see `check_schema`.
    """
    while True:
        try:
            with pool.connection() as conn:
                check_schema(conn)
                return
        except psycopg.OperationalError as error:
            log.warning("waiting for the database (%s)", type(error).__name__)
        except SystemExit:
            pool.close()
            raise


def open_pool(url: str, name: str, lease_s: float, size: int) -> ConnectionPool[Connection]:
    """Open a pool that connects in the background and survives restarts of the server.

    Args:
        url: `postgresql://…`.
        name: shown in pg_stat_activity.
        lease_s: the lease, in seconds.
        size: most connections.
    """
    return ConnectionPool(
        url,
        min_size=1,
        max_size=size,
        kwargs=connection_options(name, lease_s),
        check=check_connection,
        timeout=max(2.0, lease_s / 4),
        reconnect_timeout=POOL_RECONNECT_S,
        open=True,
        name=f"vestry-{name}",
    )


@contextmanager
def session(pool: ConnectionPool[Connection], limit_s: float) -> Iterator[Connection]:
    """A pool's connection for one transaction, which fails if it takes longer than `limit_s`."""
    with pool.connection() as conn, deadline(conn, limit_s):
        yield conn


@contextmanager
def deadline(conn: Connection, limit_s: float) -> Iterator[None]:
    """Fail any wait on the connection in this block once `limit_s` seconds have passed.

    The wait raises `psycopg.OperationalError`, as for any lost connection.
    """
    number = _deadline_watcher.begin(conn, limit_s)
    try:
        yield
    finally:
        _deadline_watcher.end(number)


class DeadlineWatcher:
    """Enforces the deadlines of one process, on a thread that waits for no connection."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waits: dict[int, tuple[float, Connection]] = {}
        self._next = 0
        self._thread: threading.Thread | None = None

    def begin(self, conn: Connection, limit_s: float) -> int:
        """Begin a deadline; returns its number for `end`."""
        with self._lock:
            self._next += 1
            self._waits[self._next] = (time.monotonic() + max(MIN_DEADLINE_S, limit_s), conn)
            # A fork has the thread object without its thread.
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=self._run, name="deadline-watcher", daemon=True
                )
                self._thread.start()
            return self._next

    def end(self, number: int) -> None:
        """End a deadline."""
        with self._lock:
            self._waits.pop(number, None)

    def _run(self) -> None:
        while True:
            time.sleep(DEADLINE_CHECK_S)
            now = time.monotonic()
            with self._lock:
                # Until `end`, the waiting thread holds the connection: its descriptor is not reused.
                for number, (until, conn) in list(self._waits.items()):
                    if now >= until:
                        del self._waits[number]
                        log.warning("database wait exceeded its deadline; closing the connection")
                        abort_socket(conn)


_deadline_watcher: Final = DeadlineWatcher()


def abort_socket(conn: Connection) -> None:
    """Shut down a connection's socket, so that every wait on it fails. Safe from any thread."""
    with (
        contextlib.suppress(psycopg.Error, OSError),
        socket.socket(fileno=os.dup(conn.fileno())) as end,
    ):
        end.shutdown(socket.SHUT_RDWR)


def stop_on_signals() -> threading.Event:
    """An event that SIGTERM and SIGINT set."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def run_with_reconnect(
    settings: Settings,
    name: str,
    stop: threading.Event,
    body: Callable[[Connection], None],
) -> None:
    """Run `body` with an autocommit connection, and with a new one after each loss, until stopped.

    The first connection checks the schema (`check_schema`).

    Args:
        settings: the database login and the lease.
        name: shown in pg_stat_activity.
        stop: ends the loop.
        body: runs until `stop` is set or its connection is lost.
    """
    pause = 0.1
    checked = False
    while not stop.is_set():
        try:
            with psycopg.connect(
                settings.database,
                autocommit=True,
                **connection_options(
                    name, settings.lease_s, max(IDLE_SESSION_TIMEOUT_S, 5 * settings.poll_s)
                ),
            ) as conn:
                pause = 0.1
                if not checked:
                    check_schema(conn)
                    checked = True
                body(conn)
        except CONNECTION_ERRORS as error:
            log.warning("database unavailable (%s); %s reconnects", type(error).__name__, name)
            stop.wait(pause)
            pause = min(MAX_RECONNECT_PAUSE_S, pause * 2)
