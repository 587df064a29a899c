"""Locations that must never have private content, each read as bytes."""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import psycopg
import redis
from psycopg import sql

from models.bootstrap import PRIVATE_WORKER, PRODUCER, ROLES
from tests.faultserver import FaultServer
from tests.flower_client import FlowerClient
from tests.privacy.observed_up import OBSERVER
from tests.privacy.watch import Watch, everything_below
from workers.home import Home, read_json
from workers.stack.postgres import SUPERUSER, PostgresServer
from workers.stack.valkey import PRIVACIES, ValkeyServer

Contents = Iterable[tuple[str, bytes]]
Location = Callable[[], Contents]

STEP = 8 * 1024 * 1024
OVERLAP = 4096
"""Bytes that are read twice, so that no token is split between two reads."""

SERVER_MEMORY = (
    "CLIENT LIST", "ACL LOG", "SLOWLOG GET -1", "PUBSUB CHANNELS",
    "COMMANDLOG GET -1 large-request", "COMMANDLOG GET -1 large-reply",
)  # fmt: skip
"""Commands that show the broker's records of commands and clients."""

RELATIONS = """
SELECT n.nspname, c.relname, array_agg(a.attname ORDER BY a.attnum)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE c.relkind IN ('r', 'v', 'm', 'p')
  AND (n.nspname IN ('vestry', 'public') OR n.nspname = 'pg_catalog' AND c.relname IN
    ('pg_stats', 'pg_statistic', 'pg_stats_ext', 'pg_stat_activity', 'pg_prepared_statements',
     'pg_cursors', 'pg_largeobject', 'pg_settings', 'pg_seclabels', 'pg_description'))
  AND has_schema_privilege(n.oid, 'USAGE') AND has_column_privilege(c.oid, a.attnum, 'SELECT')
GROUP BY 1, 2 ORDER BY 1, 2"""


@dataclass(slots=True)
class Stack:
    """The stack whose locations are read."""

    home: Home
    watch: Watch
    client: dict[str, Any]
    errors: list[str]
    """Every error that a producer received, with its traceback."""
    cloud: FaultServer
    """A cloud's endpoint, which records every request."""

    @property
    def postgres(self) -> PostgresServer:
        return PostgresServer(self.home)

    def observer(self) -> Any:
        """A broker client with all permissions; bytes in, bytes out."""
        password = self.home.password(f"valkey.{OBSERVER}")
        port = ValkeyServer(self.home).port
        return redis.Redis(port=port, username=OBSERVER, password=password)

    def superuser(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.postgres.url(SUPERUSER), autocommit=True)

    def owners(self) -> list[str]:
        with self.superuser() as conn:
            return [row[0] for row in conn.execute("SELECT owner FROM vestry.owners")]

    def locations(self) -> Mapping[str, Location]:
        """All locations, by name."""
        locations: dict[str, Location] = {
            "broker keys": lambda: broker_keys(self.observer()),
            "broker traffic": lambda: [("all commands", self.watch.traffic())],
            "logs": lambda: files([self.home.logs]),
            "statements": lambda: statements(self),
            "notices": lambda: [("notices", "\n".join(self.watch.notices).encode())],
            "processes": lambda: processes(self.watch),
            "producers' errors": lambda: [("errors", "\n".join(self.errors).encode())],
            **{f"flower of {p}": partial(flower, self.client["flower"][p]) for p in PRIVACIES},
            **{f"dump by {r}": partial(dump, self, r) for r in (*ROLES, SUPERUSER)},
            "directory": lambda: directory(self),
            "temporary files": lambda: temporary(self),
            "cloud endpoint": lambda: endpoint(self.cloud),
        }
        del locations[f"dump by {PRIVATE_WORKER}"]
        # Only if the system allows it. Traffic and keys have the same content, without freed memory.
        if can_trace(self.home):
            locations["broker memory"] = lambda: memory(broker_pid(self.home))
        return locations


def broker_keys(client: Any) -> Contents:
    """Every key with its value, and the server's records of its clients."""
    read: dict[bytes, Callable[[bytes], Any]] = {
        b"string": client.get,
        b"list": lambda key: client.lrange(key, 0, -1),
        b"set": client.smembers,
        b"hash": client.hgetall,
        b"zset": lambda key: client.zrange(key, 0, -1, withscores=True),
        b"stream": client.xrange,
    }
    with client:
        for key in client.scan_iter(count=1000):
            kind = client.type(key)
            yield f"key of type {kind.decode()}", key
            # A key may be deleted between the two commands.
            if kind != b"none":
                yield f"a {kind.decode()}", b"\n".join(_flat(read[kind](key)))
        for command in SERVER_MEMORY:
            yield command, b"\n".join(_flat(client.execute_command(*command.split())))


def broker_pid(home: Home) -> int:
    """The process id of the stack's broker."""
    listed = read_json(home.state)["processes"]
    return next(int(process["pid"]) for process in listed if process["name"] == "valkey")


def can_trace(home: Home) -> bool:
    """Whether the broker's memory can be read."""
    try:
        with Path(f"/proc/{broker_pid(home)}/mem").open("rb"):
            return True
    except OSError:
        return False


def memory(pid: int) -> Contents:
    """Every writable region of a process's memory."""
    maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as space:
        for line in maps.splitlines():
            match = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw", line)
            if match is None:
                continue
            start, end = (int(edge, 16) for edge in match.groups())
            for at in range(start, end, STEP):
                # A region may be freed or not backed by memory.
                with contextlib.suppress(OSError, ValueError, OverflowError):
                    space.seek(at)
                    yield "memory", space.read(min(STEP + OVERLAP, end - at))


def files(roots: Iterable[Path]) -> Contents:
    """Every file below some directories, with its name."""
    for root in roots:
        for path in sorted(everything_below(root)):
            where = str(path.relative_to(root))
            yield "a file's name", where.encode("utf-8", "surrogateescape")
            with contextlib.suppress(FileNotFoundError), contextlib.ExitStack() as stack:
                if not path.is_file() or path.is_symlink():
                    continue
                stream = stack.enter_context(path.open("rb"))
                while part := stream.read(STEP):
                    yield where, part
                    if len(part) == STEP:
                        stream.seek(-OVERLAP, 1)


def directory(stack: Stack) -> Contents:
    """The stack's directory and, if it is separate, that of its servers, after a checkpoint."""
    with stack.superuser() as conn:
        conn.execute("CHECKPOINT")
    servers = stack.postgres.directory.path.parent
    return files({stack.home.path: None, servers: None})


def temporary(stack: Stack) -> Contents:
    """Temporary files, and the recorded names of workers' temporary files."""
    yield "names", "\n".join(stack.watch.names).encode("utf-8", "surrogateescape")
    parents = [Path("/dev/shm"), Path(tempfile.gettempdir())]  # noqa: S108 - only read
    directories = [path for parent in parents for path in parent.glob("vestry-[0-9]*")]
    yield from files([*directories, *stack.home.run.glob("*")])


def endpoint(cloud: FaultServer) -> Contents:
    """Every request to the cloud."""
    for request in cloud.requests:
        headers = "\n".join(f"{name}: {value}" for name, value in request.headers.items())
        yield request.path, f"{request.path}\n{headers}\n".encode() + request.body


def dump(stack: Stack, role: str) -> Contents:
    """Everything that a login can read, as text and binary, with every owner in its context."""
    owners = stack.owners()
    # A producer may name only one owner.
    contexts = [[owner] for owner in owners] if role == PRODUCER else [owners]
    with psycopg.connect(stack.postgres.url(role), autocommit=True) as conn:
        for named in contexts:
            conn.execute("SELECT set_config('vestry.owners', (%s::text[])::text, false)", [named])
            yield from _relations(conn)


def _relations(conn: psycopg.Connection[Any]) -> Contents:
    for schema, table, columns in conn.execute(RELATIONS).fetchall():
        query = sql.SQL("SELECT {} FROM {}").format(
            sql.SQL(", ").join(map(sql.Identifier, columns)), sql.Identifier(schema, table)
        )
        for form in ("text", "binary") if schema == "vestry" else ("text",):
            # System views that need more than the grant, or have no binary form.
            with contextlib.suppress(psycopg.Error):
                yield f"{schema}.{table}, {form}", _copy(conn, query, form)


def _copy(conn: psycopg.Connection[Any], query: sql.Composed, form: str) -> bytes:
    statement = sql.SQL("COPY ({}) TO STDOUT (FORMAT {})").format(query, sql.SQL(form))
    with conn.cursor() as cursor, cursor.copy(statement) as copy:
        return b"".join(bytes(part) for part in copy)


def statements(stack: Stack) -> Contents:
    """Statements that the server showed as running or counted."""
    yield "pg_stat_activity", "\n".join(stack.watch.statements).encode()
    with stack.superuser() as conn:
        conn.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
        rows = conn.execute("SELECT query FROM pg_stat_statements").fetchall()
    yield "pg_stat_statements", "\n".join(row[0] or "" for row in rows).encode()


def flower(described: dict[str, str]) -> Contents:
    """Flower's pages and API, those of tasks and workers included."""
    client = FlowerClient(described)
    tasks, workers = client.tasks(), client.workers()
    paths = ["/", "/tasks", "/workers", "/workers?json=1", "/broker", "/metrics",
             "/api/task/types", "/api/workers", "/api/tasks?limit=10000",
             *(f"/task/{name}" for name in list(tasks)[:20]),
             *(f"/worker/{name}" for name in workers)]  # fmt: skip
    yield "all tasks", json.dumps(tasks, ensure_ascii=False).encode()
    # Unescaped: JSON doubles backslashes.
    yield "all words", b"\n".join(word.encode() for word in _words(tasks))
    for path in paths:
        yield path, client.get(path)[1].encode()


def _words(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case dict():
            for pair in value.items():
                yield from _words(pair)
        case list() | tuple():
            for item in value:
                yield from _words(item)


def processes(watch: Watch) -> Contents:
    """Arguments and environments: recorded ones of the stack, present ones of all other processes."""
    for name, seen in list(watch.processes.items()):
        yield name, b"\n".join(seen)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            words = [*process.cmdline(), *(f"{k}={v}" for k, v in process.environ().items())]
            yield f"{process.name()} {process.pid}", "\n".join(words).encode("utf-8", "replace")


def _flat(value: Any) -> Iterator[bytes]:
    match value:
        case bytes():
            yield value
        case dict():
            for pair in value.items():
                yield from _flat(pair)
        case list() | tuple() | set():
            for item in value:
                yield from _flat(item)
        case _:
            yield str(value).encode()
