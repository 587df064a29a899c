"""A worker process's connections: pooled, named, with every wait bounded below half a lease."""

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
from psycopg_pool import ConnectionPool, PoolTimeout

from models.claims import PLANNER_OPTIONS
from vestry.db.schema import read_revision, revision_fault
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
"""Errors that say nothing of what was asked: the database is away, or has given this session up because
its process stood still, or it is a standby now. The last three are no `OperationalError`."""
POOL_RECONNECT_S = 2.0
"""How long the pool itself tries to replace a lost connection. Its pauses double without bound; given
up early, the next request for a connection tries again at once."""


def connection_options(name: str, lease_s: float, idle_s: float = 0.0) -> dict[str, Any]:
    """Connection arguments for psycopg.

    Statement, idle-in-transaction and TCP time-outs stay below half a lease, so that a process
    hanging on a dead connection gives up before its lease does. The server is told to notice a client
    that is gone, too: its locks would outlive it. A whole transaction has a lease: in a pipeline, which
    is most of them, the server does not call a session idle whose client is frozen.

    Args:
        name: what Postgres shows in pg_stat_activity.
        lease_s: the lease, in seconds.
        idle_s: the server ends a session that says nothing for so long; 0 for never.
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
    """Raise `psycopg.OperationalError` for a connection that its server has closed.

    Costs no round trip: an idle connection has nothing to read, unless it is that it was closed.
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
    """Return once the pool has a working connection and the schema is checked; waits without limit.

    Raises:
        SystemExit: see `check_schema`.
    """
    while True:
        try:
            with pool.connection() as conn:
                check_schema(conn)
                return
        except (PoolTimeout, psycopg.OperationalError) as error:
            log.warning("waiting for the database (%s)", type(error).__name__)
        except SystemExit:
            pool.close()
            raise


def open_pool(url: str, name: str, lease_s: float, size: int) -> ConnectionPool[Connection]:
    """A pool that connects in the background and survives the server's restarts.

    Args:
        url: `postgresql://…`.
        name: what Postgres shows.
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


# No wait for the database is endless: a connection that gives no answer in time is cut.
#
# `statement_timeout` is kept by the server; one that never got the statement keeps nothing.
# Behind a proxy or a load balancer that has lost its other side, TCP sees nothing wrong either,
# keepalives are answered, and a process would wait for ever, alive and deaf. Cut, the wait ends
# as a lost connection does, and what handles those handles this.

DEADLINE_CHECK_S: Final = 0.5
MIN_DEADLINE_S: Final = 3.0
"""No wait is cut before this: a busy machine is slow, too."""


class DeadlineWatcher:
    """Watches the waits of one process, on a thread that itself waits for nothing."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waits: dict[int, tuple[float, Connection]] = {}
        self._next = 0
        self._thread: threading.Thread | None = None

    def begin(self, conn: Connection, limit_s: float) -> int:
        """Watch from now on; gives what `end` takes."""
        with self._lock:
            self._next += 1
            self._waits[self._next] = (time.monotonic() + max(MIN_DEADLINE_S, limit_s), conn)
            # Of a forked process it is not alive, either.
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="cutter", daemon=True)
                self._thread.start()
            return self._next

    def end(self, number: int) -> None:
        """The wait is over."""
        with self._lock:
            self._waits.pop(number, None)

    def _run(self) -> None:
        while True:
            time.sleep(DEADLINE_CHECK_S)
            now = time.monotonic()
            with self._lock:
                # Who waits still holds the connection: its descriptor cannot be another's by now.
                for number, (until, conn) in list(self._waits.items()):
                    if now >= until:
                        del self._waits[number]
                        log.warning("the database gave no answer in time; the connection is cut")
                        _abort_socket(conn)


_deadline_watcher: Final = DeadlineWatcher()


@contextmanager
def deadline(conn: Connection, limit_s: float) -> Iterator[None]:
    """Whatever waits on the connection in this block fails once `limit_s` seconds have passed.

    It fails with `psycopg.OperationalError`, as for any connection that was lost.
    """
    number = _deadline_watcher.begin(conn, limit_s)
    try:
        yield
    finally:
        _deadline_watcher.end(number)


@contextmanager
def session(pool: ConnectionPool[Connection], limit_s: float) -> Iterator[Connection]:
    """A connection of a pool for one transaction, which is over within `limit_s` seconds or fails."""
    with pool.connection() as conn, deadline(conn, limit_s):
        yield conn


def _abort_socket(conn: Connection) -> None:
    with (
        contextlib.suppress(psycopg.Error, OSError),
        socket.socket(fileno=os.dup(conn.fileno())) as end,
    ):
        end.shutdown(socket.SHUT_RDWR)


# What the dispatcher and the reconciler have in common: run until told to stop, outlive outages.

IDLE_SESSION_TIMEOUT_S = 10.0
"""A session of these, which asks something every second, is ended by the server once it is silent for
this long. It may hold the advisory lock that keeps all others of its sort waiting, and belong to a
process that is frozen, or gone behind a proxy that has not noticed."""
LOOP_DEADLINE_S = 20.0
"""How long one round of such a loop may wait for the database, and for the broker in between."""
MAX_RECONNECT_PAUSE_S = 2.0
"""Between two attempts to reach a database that refuses connections. After such an outage a lost job
waits for this, a lease's grace and a `poll_s`; promised are a lease and five seconds."""


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
    """Call `body` with a fresh autocommit connection, again after every loss of it, until stopped.

    The first connection checks the schema (`check_schema`).

    Args:
        settings: where the database is.
        name: what Postgres shows.
        stop: ends the loop.
        body: runs until `stop` is set or its connection breaks.
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
            log.warning("%s: database away (%s)", name, type(error).__name__)
            stop.wait(pause)
            pause = min(MAX_RECONNECT_PAUSE_S, pause * 2)
