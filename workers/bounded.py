"""No wait for the database is endless: a connection that gives no answer in time is cut.

`statement_timeout` is kept by the server; one that never got the statement keeps nothing. Behind a
proxy or a load balancer that has lost its other side, TCP sees nothing wrong either, keepalives are
answered, and a process would wait for ever, alive and deaf. Cut, the wait ends as a lost connection
does, and what handles those handles this.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg
from psycopg_pool import ConnectionPool

Connection = psycopg.Connection[Any]
log = logging.getLogger(__name__)

TICK_S: Final = 0.5
SHORTEST_S: Final = 3.0
"""No wait is cut before this: a busy machine is slow, too."""


class _Cutter:
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
            self._waits[self._next] = (time.monotonic() + max(SHORTEST_S, limit_s), conn)
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
            time.sleep(TICK_S)
            now = time.monotonic()
            with self._lock:
                # Who waits still holds the connection: its descriptor cannot be another's by now.
                for number, (until, conn) in list(self._waits.items()):
                    if now >= until:
                        del self._waits[number]
                        log.warning("the database gave no answer in time; the connection is cut")
                        _cut(conn)


_cutter: Final = _Cutter()


@contextmanager
def bounded(conn: Connection, limit_s: float) -> Iterator[None]:
    """Whatever waits on the connection in this block fails once `limit_s` seconds have passed.

    It fails with `psycopg.OperationalError`, as for any connection that was lost.
    """
    number = _cutter.begin(conn, limit_s)
    try:
        yield
    finally:
        _cutter.end(number)


@contextmanager
def session(pool: ConnectionPool[Connection], limit_s: float) -> Iterator[Connection]:
    """A connection of a pool for one transaction, which is over within `limit_s` seconds or fails."""
    with pool.connection() as conn, bounded(conn, limit_s):
        yield conn


def _cut(conn: Connection) -> None:
    with (
        contextlib.suppress(psycopg.Error, OSError),
        socket.socket(fileno=os.dup(conn.fileno())) as end,
    ):
        end.shutdown(socket.SHUT_RDWR)
