"""The six walls of docs/privacy.md, with a switch for each, and ways to leak a private text.

Each way is a plausible mistake, made with the real components. Each wall is switched off by a typical
mistake: a dropped constraint, an additional grant, a key ring passed to the wrong process.
"""

from __future__ import annotations

import contextlib
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final
from uuid import UUID

import httpx2
import psycopg
import redis
from psycopg_pool import ConnectionPool

from inference.catalogue.loader import load
from inference.errors import InferenceError
from inference.protocol import BackendConfig
from inference.remote import local_network
from inference.remote.client import httpx2_client
from inference.remote.egress import on_behalf_of
from inference.routing.policy import Budget, RoutingPolicy, RoutingRequest
from tests.quick_stack import quick_postgres
from vestry import Generation, KeyRing, Vestry
from vestry.crypto.envelope import PAYLOAD
from workers.app import make_app
from workers.execution.egress_log import recorder
from workers.isolation import preflight
from workers.stack import valkey
from workers.stack.dev_stack import DevStack

OUTSIDE: Final = "127.0.0.2"
"""An external address: in these tests only 127.0.0.1 counts as loopback."""
QUEUE: Final = "vestry.private.private.bulk.gpu"
SENDING: Final = """
import sys, urllib.request
urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
    sys.argv[1], data=sys.stdin.buffer.read(), timeout=3)
"""


class Wall(StrEnum):
    """The walls, in the order of docs/privacy.md."""

    TYPES = "types"
    PROCESS = "process"
    KEYS = "keys"
    ROWS = "rows"
    BROKER = "broker"
    NETWORK = "network"


ROWS_OFF = """
GRANT SELECT ON vestry.private_payloads, vestry.owner_keys TO vestry_cloud, vestry_control;
CREATE POLICY off_payloads ON vestry.private_payloads TO vestry_cloud, vestry_control USING (true);
CREATE POLICY off_keys ON vestry.owner_keys TO vestry_cloud, vestry_control USING (true);
CREATE POLICY off_jobs ON vestry.jobs TO vestry_cloud USING (true);"""
ROWS_ON = """
REVOKE SELECT ON vestry.private_payloads, vestry.owner_keys FROM vestry_cloud;
REVOKE SELECT ON vestry.owner_keys FROM vestry_control;
REVOKE SELECT ON vestry.private_payloads FROM vestry_control;
GRANT SELECT (job_id, owner) ON vestry.private_payloads TO vestry_control;
DROP POLICY off_payloads ON vestry.private_payloads;
DROP POLICY off_keys ON vestry.owner_keys;
DROP POLICY off_jobs ON vestry.jobs;"""


class Endpoint(http.server.ThreadingHTTPServer):
    """A cloud at an external address; records every byte that it receives."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__((OUTSIDE, 0), _Handler)
        self.received = bytearray()

    @property
    def url(self) -> str:
        return f"http://{OUTSIDE}:{self.server_port}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        self.server.received += str(self.headers).encode()
        self.server.received += self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@dataclass
class Lab:
    """One private job, and the walls between it and a cloud.

    Attributes:
        stack: servers, with a broker user `observer` that has all permissions.
        endpoint: the cloud.
        job: the private job's id; its text is `text`.
        off: the walls that are switched off.
    """

    stack: DevStack
    endpoint: Endpoint
    text: str
    job: UUID = field(init=False)
    seen: bytearray = field(default_factory=bytearray)
    """Everything that the cloud's logins to database and broker have read."""
    off: frozenset[Wall] = frozenset()

    def __post_init__(self) -> None:
        url = self.stack.database_url("vestry_producer")
        with Vestry(url, self.stack.keyring) as vestry, psycopg.connect(url) as conn:
            request = Generation(prompt=self.text)
            self.job = vestry.enqueue(
                conn, request, owner="ann", privacy="private", quality="best"
            ).id
            conn.commit()

    @contextlib.contextmanager
    def without(self, off: frozenset[Wall]) -> Iterator[None]:
        """Switch walls off, until the end of the block."""
        self.off = off
        self.seen.clear()
        self.endpoint.received.clear()
        admin = redis.Redis.from_url(self.stack.broker_url("observer"))
        with psycopg.connect(self.stack.superuser_url, autocommit=True) as root, admin:
            constraint = root.execute(
                """SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint
                   WHERE conrelid = 'vestry.jobs'::regclass
                     AND pg_get_constraintdef(oid) LIKE '%cloud%private%' OR
                     conrelid = 'vestry.jobs'::regclass
                     AND pg_get_constraintdef(oid) LIKE '%private%pool%cloud%'"""
            ).fetchone()
            assert constraint is not None
            if Wall.TYPES in off:
                root.execute(f"ALTER TABLE vestry.jobs DROP CONSTRAINT {constraint[0]}")
            if Wall.ROWS in off:
                root.execute(ROWS_OFF)
                root.execute("DROP POLICY cloud_pool ON vestry.jobs")
            if Wall.BROKER in off:
                admin.execute_command("ACL", "SETUSER", "cloud", "~*", "&*", "+@all")
            try:
                yield
            finally:
                root.execute("UPDATE vestry.jobs SET pool = 'gpu' WHERE id = %s", [self.job])
                if Wall.TYPES in off:
                    name, definition = constraint
                    root.execute(f"ALTER TABLE vestry.jobs ADD CONSTRAINT {name} {definition}")
                if Wall.ROWS in off:
                    root.execute(ROWS_ON)
                    root.execute(
                        """CREATE POLICY cloud_pool ON vestry.jobs AS RESTRICTIVE TO vestry_cloud
                           USING (pool = 'cloud')"""
                    )
                if Wall.BROKER in off:
                    rules = valkey.permissions("cloud").split()
                    admin.execute_command(
                        "ACL", "SETUSER", "cloud", "resetkeys", "resetchannels", *rules
                    )
                admin.delete(QUEUE)

    def on(self, wall: Wall) -> bool:
        return wall not in self.off

    def content_as(self, role: str) -> bytes:
        """The job's payload as a login reads it; opened without the keys wall."""
        content = self._content_as(role)
        if role == "vestry_cloud":
            self.seen += content
        return content

    def _content_as(self, role: str) -> bytes:
        with psycopg.connect(self.stack.database_url(role), autocommit=True) as conn:
            row = conn.execute(
                "SELECT body, owner FROM vestry.private_payloads WHERE job_id = %s", [self.job]
            ).fetchone()
            if row is None:
                return b""
            if self.on(Wall.KEYS):
                return bytes(row[0])
            key = conn.execute(
                "SELECT key_id, wrapped, kek_id FROM vestry.owner_keys WHERE owner = %s", [row[1]]
            ).fetchone()
            assert key is not None
            ring = KeyRing.load(self.stack.keyring)
            return ring.unwrap(row[1], *key).open(PAYLOAD, self.job, bytes(row[0]))

    def send_from_private_worker(self, url: str, body: bytes) -> None:
        """A plain request from a private worker's network."""
        isolation = ["unshare", "-n"] if self.on(Wall.NETWORK) else []
        subprocess.run(
            [*isolation, sys.executable, "-c", SENDING, url], input=body, check=False,
            stderr=subprocess.DEVNULL, timeout=20,
        )  # fmt: skip


class Stopped(Exception):
    """A wall stopped the attempt."""


def misrouted(lab: Lab) -> None:
    """Routing treats a private job as shareable, and it is moved to a cloud's lane."""
    privacy = "private" if lab.on(Wall.TYPES) else "shareable"
    request = RoutingRequest("generation", None, privacy, "bulk", quality="best")
    catalogue = load().only({"openai": lab.endpoint.url, "sentence-transformers": None})
    candidates = RoutingPolicy(catalogue).candidates(request, {}, Budget())
    if candidates.first is None or candidates.first.locality != "cloud":
        raise Stopped("there is no cloud among the candidates")
    with psycopg.connect(lab.stack.superuser_url, autocommit=True) as root:
        root.execute("UPDATE vestry.jobs SET pool = 'cloud' WHERE id = %s", [lab.job])
    with psycopg.connect(lab.stack.database_url("vestry_cloud"), autocommit=True) as conn:
        seen = conn.execute(
            "SELECT id FROM vestry.jobs WHERE lane = 'private.bulk.cloud' AND state = 'queued'"
        ).fetchall()
    if not seen:
        raise Stopped("the cloud worker sees no such job")
    body = lab.content_as("vestry_cloud")
    with ConnectionPool(lab.stack.database_url("vestry_cloud"), min_size=1) as pool:
        record = recorder(pool) if lab.on(Wall.PROCESS) else _unrecorded
        config = BackendConfig("openai", "cloud", url=lab.endpoint.url, egress=record)
        with httpx2_client(config) as client, on_behalf_of([lab.job]):
            client.post(f"{lab.endpoint.url}/v1", content=body)


def called_directly(lab: Lab) -> None:
    """Code in a private worker calls a cloud directly, with a key from the environment."""
    if lab.on(Wall.PROCESS):
        environment = {"OPENAI_API_KEY": "x"}
        preflight.check_private_worker(
            environment, load().only({"sentence-transformers": None}), keys=()
        )
    lab.send_from_private_worker(f"{lab.endpoint.url}/v1", lab.text.encode())


def called_through_a_backend(lab: Lab) -> None:
    """Code in a private worker calls a cloud backend, for which it has no egress recorder."""
    record = None if lab.on(Wall.PROCESS) else _unrecorded
    config = BackendConfig("openai", "cloud", url=lab.endpoint.url, egress=record)
    with httpx2_client(config) as client, on_behalf_of([lab.job]):
        if lab.on(Wall.NETWORK):
            lab.send_from_private_worker(f"{lab.endpoint.url}/v1", lab.text.encode())
        else:
            client.post(f"{lab.endpoint.url}/v1", content=lab.text.encode())


def local_name_resolves_outside(lab: Lab) -> None:
    """A local backend's name resolves to another machine when it is called."""
    url = f"{lab.endpoint.url}/v1"
    if lab.on(Wall.PROCESS):
        config = BackendConfig("llama", "local", url=url)
        with httpx2_client(config) as client:
            client.post(url, content=lab.text.encode())
    else:
        lab.send_from_private_worker(url, lab.text.encode())


def sent_in_message(lab: Lab) -> None:
    """The dispatcher puts readable content into a message, and a cloud worker reads the queue."""
    try:
        content = lab.content_as("vestry_control")
    except psycopg.Error:
        content = b""
    app = make_app(lab.stack.broker_url("dispatcher"), "private")
    extra = () if lab.on(Wall.BROKER) else (content.decode("latin-1"),)
    app.send_task("generation", args=(str(lab.job), *extra), queue="private.bulk.gpu", retry=False,
                  argsrepr=repr(extra), kwargsrepr="{}")  # fmt: skip
    with redis.Redis.from_url(lab.stack.broker_url("cloud")) as broker:
        lab.seen += b"".join(broker.lrange(QUEUE, 0, -1))  # type: ignore[arg-type, union-attr]


def read_by_query(lab: Lab) -> None:
    """A cloud worker queries the database."""
    lab.content_as("vestry_cloud")


WAYS: Final[dict[str, Callable[[Lab], None]]] = {
    way.__name__: way
    for way in (
        misrouted, called_directly, called_through_a_backend, local_name_resolves_outside,
        sent_in_message, read_by_query,
    )
}  # fmt: skip


def _unrecorded(*_: object) -> None:
    pass


class ObservedValkey(valkey.ValkeyServer):
    """A broker with a user that has all permissions."""

    extra_users = MappingProxyType({"observer": "~* &* +@all"})


class ObservedStack(DevStack):
    """A stack with that broker."""

    broker_class = ObservedValkey


@contextlib.contextmanager
def laboratory(home: Path, text: str) -> Iterator[Lab]:
    """A separate stack, whose walls can be switched off."""
    loopback = local_network.LOOPBACK
    local_network.LOOPBACK = (local_network.ipaddress.IPv4Network("127.0.0.1/32"),)  # type: ignore[misc]
    try:
        with quick_postgres(), ObservedStack(home) as stack, Endpoint() as endpoint:
            thread = threading.Thread(target=endpoint.serve_forever, args=(0.05,))
            thread.start()
            yield Lab(stack, endpoint, text)
            endpoint.shutdown()
            thread.join()
    finally:
        local_network.LOOPBACK = loopback  # type: ignore[misc]


def may_create_networks() -> bool:
    """Whether this account may create network namespaces."""
    if os.geteuid() != 0:
        return False
    done = subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False)
    return done.returncode == 0


EXPECTED: Final = (
    psycopg.Error, redis.RedisError, httpx2.HTTPError, InferenceError,
    preflight.PrivacyPreflightError, Stopped,
)  # fmt: skip
"""The errors of attempts that a wall stops."""
