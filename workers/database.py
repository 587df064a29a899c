"""A worker process's connections: pooled, named, with every wait bounded below half a lease."""

from __future__ import annotations

import logging
import select
from typing import Any

import psycopg
from psycopg_pool import ConnectionPool, PoolTimeout

from models.claim_query import PLANNER_OPTIONS
from workers.bounded import SHORTEST_S

Connection = psycopg.Connection[Any]
log = logging.getLogger(__name__)


AWAY = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    psycopg.errors.TransactionTimeout,
    psycopg.errors.IdleInTransactionSessionTimeout,
    psycopg.errors.ReadOnlySqlTransaction,
)
"""Errors that say nothing of what was asked: the database is away, or has given this session up because
its process stood still, or it is a standby now. The last three are no `OperationalError`."""
RECONNECT_S = 2.0
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
            f"-c transaction_timeout={int(max(SHORTEST_S, lease_s) * 1000)} "
            f"-c idle_session_timeout={int(idle_s * 1000)} -c tcp_keepalives_idle=5 "
            "-c tcp_keepalives_interval=2 -c tcp_keepalives_count=3 "
            f"{PLANNER_OPTIONS}"
        ),
    }


def check(conn: Connection) -> None:
    """Raise `psycopg.OperationalError` for a connection that its server has closed.

    Costs no round trip: an idle connection has nothing to read, unless it is that it was closed.
    """
    readable, _, broken = select.select([conn.fileno()], [], [conn.fileno()], 0)
    if readable or broken:
        ConnectionPool.check_connection(conn)


def await_server(pool: ConnectionPool[Connection]) -> None:
    """Return once the pool has a connection that works; waits as long as that takes."""
    while True:
        try:
            with pool.connection():
                return
        except (PoolTimeout, psycopg.OperationalError) as error:
            log.warning("waiting for the database (%s)", type(error).__name__)


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
        check=check,
        timeout=max(2.0, lease_s / 4),
        reconnect_timeout=RECONNECT_S,
        open=True,
        name=f"vestry-{name}",
    )
