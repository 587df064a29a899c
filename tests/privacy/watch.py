"""Observers during jobs: broker traffic, statements, notices, processes, names of temporary files."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import psutil
import psycopg

from tests.privacy.observed_up import OBSERVER
from workers.home import Home
from workers.stack.postgres import SUPERUSER, PostgresServer
from workers.stack.valkey import ValkeyServer

_ESCAPE = re.compile(rb"\\(x[0-9a-f]{2}|.)", re.DOTALL)
_NAMED = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"a": b"\a", b"b": b"\b"}


def everything_below(root: Path) -> Iterator[Path]:
    """Every path below a directory, tolerating concurrent removal."""
    for at, directories, names in os.walk(root):
        yield from (Path(at, name) for name in (*directories, *names))


class Watch:
    """Observes a stack on background threads, as a context manager."""

    def __init__(self, home: Home, supervisor: int) -> None:
        self._home = home
        self._supervisor = supervisor
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._traffic = bytearray()
        self.statements: set[str] = set()
        self.notices: list[str] = []
        self.processes: dict[str, set[bytes]] = {}
        self.names: set[str] = set()
        self.errors: list[BaseException] = []

    def __enter__(self) -> Self:
        ready: list[threading.Event] = []
        for watching in (self._broker, self._database, self._children, self._temporary):
            begun = threading.Event()
            ready.append(begun)
            thread = threading.Thread(target=self._guarded, args=(watching, begun), daemon=True)
            thread.start()
            self._threads.append(thread)
        for begun in ready:
            assert begun.wait(20), f"an observer did not start: {self.errors}"
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(20)

    def traffic(self) -> bytes:
        """Every command that any client sent to the broker, arguments unescaped."""
        return _ESCAPE.sub(
            lambda m: bytes([int(m[1][1:], 16)]) if len(m[1]) == 3 else _NAMED.get(m[1], m[1]),
            bytes(self._traffic),
        )

    def _guarded(self, watching: object, begun: threading.Event) -> None:
        try:
            watching(begun)  # type: ignore[operator]
        except BaseException as error:
            self.errors.append(error)

    def _broker(self, begun: threading.Event) -> None:
        server = ValkeyServer(self._home)
        password = self._home.password(f"valkey.{OBSERVER}")
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            connection.sendall(f"AUTH {OBSERVER} {password}\r\nMONITOR\r\n".encode())
            reply = b""
            while reply.count(b"+OK\r\n") < 2:
                reply += (part := connection.recv(4096))
                assert part
                assert b"-" not in reply[:1], reply
            begun.set()
            connection.settimeout(0.2)
            while not self._stop.is_set():
                with contextlib.suppress(TimeoutError):
                    part = connection.recv(1 << 20)
                    assert part, "the broker closed the observer's connection"
                    self._traffic += part

    def _database(self, begun: threading.Event) -> None:
        url = PostgresServer(self._home).url(SUPERUSER)
        with psycopg.connect(url, autocommit=True) as conn:
            for channel in ("vestry_lane", "vestry_done"):
                conn.execute(f"LISTEN {channel}")
            while not self._stop.is_set():
                rows = conn.execute(
                    "SELECT DISTINCT coalesce(application_name, '') || ' ' || query "
                    "FROM pg_stat_activity"
                ).fetchall()
                self.statements.update(row[0] for row in rows if row[0] is not None)
                begun.set()
                self.notices += [
                    f"{notice.channel} {notice.payload}" for notice in conn.notifies(timeout=0.02)
                ]

    def _children(self, begun: threading.Event) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(psutil.NoSuchProcess):
                family = psutil.Process(self._supervisor)
                for process in (family, *family.children(recursive=True)):
                    self._note(process)
            begun.set()
            self._stop.wait(0.25)

    def _temporary(self, begun: threading.Event) -> None:
        """Record the names of temporary files, which exist only briefly."""
        while not self._stop.is_set():
            for directory in self._home.run.glob("*/vestry-*"):
                self.names.update(map(str, everything_below(directory)))
            begun.set()
            self._stop.wait(0.02)

    def _note(self, process: psutil.Process) -> None:
        with contextlib.suppress(psutil.Error, OSError):
            seen = self.processes.setdefault(f"{process.name()} {process.pid}", set())
            seen.add("\n".join(process.cmdline()).encode("utf-8", "surrogateescape"))
            environment = "\n".join(f"{k}={v}" for k, v in process.environ().items())
            seen.add(environment.encode("utf-8", "surrogateescape"))
