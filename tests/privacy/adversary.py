"""A compromised cloud worker: its logins, secrets and account, and the attempts made with them."""

from __future__ import annotations

import base64
import contextlib
import json
import subprocess
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import psycopg
import redis

from tests.privacy.locations import Stack
from workers.home import Home, read_json
from workers.stack.accounts import RECORD, ROLES
from workers.stack.process import Account
from workers.stack.valkey import ValkeyServer

Attempt = Callable[["Adversary"], Any]
PREFIX = "vestry.private."


@dataclass
class Adversary:
    """The worker's stack, logins and account.

    Attributes:
        stack: its stack.
        job: the id of a finished private job.
        pids: process ids of the stack, by name.
    """

    stack: Stack
    job: uuid.UUID
    pids: dict[str, int]
    home: Home = field(init=False)

    def __post_init__(self) -> None:
        self.home = self.stack.home

    @property
    def account(self) -> Account:
        """The cloud worker's operating-system account."""
        first = read_json(self.home.path / RECORD)["first"]
        number = first + ROLES.index("cloud")
        return Account(number, number)

    @contextlib.contextmanager
    def sql(
        self, role: str = "vestry_cloud", password: str = ""
    ) -> Iterator[psycopg.Connection[Any]]:
        """A connection as any role, by default with the cloud worker's password."""
        own = self.home.password("postgres.vestry_cloud")
        url = f"postgresql://{role}:{password or own}@127.0.0.1:{self.stack.postgres.port}/vestry"
        with psycopg.connect(url, autocommit=True) as conn:
            yield conn

    def broker(self, user: str = "cloud") -> Any:
        """The broker, with the cloud worker's password."""
        port, password = ValkeyServer(self.home).port, self.home.password("valkey.cloud")
        return redis.Redis(port=port, username=user, password=password, socket_timeout=2)

    def shell(self, command: str) -> bytes:
        """The output of a command run under the cloud worker's account."""
        done = self.account.run(["/bin/sh", "-c", command], capture_output=True, timeout=20)
        return done.stdout + done.stderr

    def pid(self, name: str) -> int:
        return self.pids[name]


def rows(query: str, *, owners: bool = False, role: str = "vestry_cloud") -> Attempt:
    """The result of a query; with `owners`, its context names every owner."""

    def attempt(adversary: Adversary) -> Any:
        with adversary.sql(role) as conn:
            if owners:
                named = adversary.stack.owners()
                conn.execute(
                    "SELECT set_config('vestry.owners', (%s::text[])::text, false)", [named]
                )
            text = query.replace(":job", f"'{adversary.job}'")
            notices: list[str] = []
            conn.add_notice_handler(lambda notice: notices.append(str(notice.message_primary)))
            result = None
            for statement in text.split(";;"):
                cursor = conn.execute(statement)  # type: ignore[call-overload]
                result = cursor.fetchall() if cursor.description else cursor.rowcount
            return result, notices

    return attempt


def copied(relation: str) -> Attempt:
    def attempt(adversary: Adversary) -> Any:
        with (
            adversary.sql() as conn,
            conn.cursor() as cursor,
            cursor.copy(f"COPY {relation} TO STDOUT") as copy,  # type: ignore[call-overload]
        ):
            return [bytes(part) for part in copy]

    return attempt


def notifications(adversary: Adversary) -> Any:
    """Every notification on the database's channels while a private job runs."""
    with adversary.sql() as conn:
        for channel in ("vestry_lane", "vestry_done"):
            conn.execute(f"LISTEN {channel}")  # type: ignore[call-overload]
        with adversary.stack.superuser() as root:
            root.execute("SELECT pg_notify('vestry_done', gen_random_uuid()::text)")
        return [notice.payload for notice in conn.notifies(timeout=0.5)]


def command(*words: str, user: str = "cloud") -> Attempt:
    """The broker's reply to a command."""
    return lambda adversary: adversary.broker(user).execute_command(*words)


def subscribed(*patterns: str) -> Attempt:
    def attempt(adversary: Adversary) -> Any:
        listening = adversary.broker().pubsub()
        listening.psubscribe(*patterns)
        return [listening.get_message(timeout=0.3) for _ in range(3)]

    return attempt


def forged(lane: str, kind: str = "embedding", routing_key: str = "") -> Attempt:
    """A forged hint of the private job, in a queue that the cloud worker reads."""

    def attempt(adversary: Adversary) -> Any:
        name = str(adversary.job)
        message = {
            "body": base64.b64encode(json.dumps([[name], {}, {}]).encode()).decode(),
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {"task": kind, "id": name, "lang": "py", "root_id": name, "argsrepr": "x"},
            "properties": {
                "correlation_id": name, "delivery_mode": 2, "delivery_tag": str(uuid.uuid4()),
                "delivery_info": {"exchange": "", "routing_key": routing_key or lane},
                "priority": 0, "body_encoding": "base64",
            },
        }  # fmt: skip
        adversary.broker().lpush(f"vestry.shareable.{lane}", json.dumps(message))
        return b""

    return attempt


def read(*paths: str) -> Attempt:
    """The files of these patterns, relative to the stack's home."""

    def attempt(adversary: Adversary) -> bytes:
        targets = " ".join(p if p.startswith("/") else f"{adversary.home.path}/{p}" for p in paths)
        return adversary.shell(
            f"cat {targets}; ls -la {targets}; find {targets} -type f -exec cat {{}} +"
        )

    return attempt


def of_process(name: str, *files: str) -> Attempt:
    """Files of /proc about a process."""

    def attempt(adversary: Adversary) -> bytes:
        base = f"/proc/{adversary.pid(name)}"
        return adversary.shell(" ; ".join(f"cat {base}/{file}" for file in files))

    return attempt


def memory_of(name: str) -> Attempt:
    def attempt(adversary: Adversary) -> bytes:
        pid = adversary.pid(name)
        return adversary.shell(
            f"head -c 1048576 /proc/{pid}/mem; dd if=/proc/{pid}/mem bs=4096 count=1 skip=1024; "
            f"cat /proc/{pid}/maps /proc/{pid}/pagemap | head -c 65536"
        )

    return attempt


def signalled(name: str) -> Attempt:
    return lambda adversary: adversary.shell(
        f"kill -0 {adversary.pid(name)} && kill -ABRT {adversary.pid(name)}"
    )


def linked(adversary: Adversary) -> bytes:
    """Links in its process directory, for the supervisor to follow when it writes there again."""
    directory = f"{adversary.home.run}/shareable-cloud"
    adversary.shell(
        f"ln -sf {adversary.home.keyring} {directory}/ready; ln -sf /etc/passwd {directory}/link"
    )
    return adversary.shell(f"cat {directory}/ready {directory}/link | grep -v :x:")


def changed_code(adversary: Adversary) -> bytes:
    """Changes to the catalogue, code and settings of other processes, for their next start."""
    home = adversary.home.path
    return adversary.shell(
        f"echo x >> {home}/catalogue.yaml; echo x >> {home}/run/state.json; "
        f"mv {home}/run/private-bulk-gpu {home}/run/x; echo x > {home}/run/private-bulk-gpu/ready; "
        f"mkdir {home}/logs/x; echo done"
    )


SQL: dict[str, Attempt] = {
    **{f"SELECT * FROM private_{t}": rows(f"SELECT * FROM vestry.private_{t}")
       for t in ("payloads", "results", "blobs", "documents", "chunks", "embeddings")},
    **{f"the same, {t}, with every owner named": rows(f"SELECT * FROM vestry.private_{t}", owners=True)
       for t in ("payloads", "results", "blobs", "documents", "chunks", "embeddings")},
    **{f"COPY private_{t}": copied(f"vestry.private_{t}") for t in ("payloads", "results", "chunks")},
    "wrapped keys": rows("SELECT * FROM vestry.owner_keys"),
    "owners": rows("SELECT * FROM vestry.owners"),
    "idempotency keys": rows("SELECT * FROM vestry.idempotency_keys"),
    "key-encryption keys": rows("SELECT * FROM vestry.wrapping_keys"),
    "a private job by its id": rows("SELECT * FROM vestry.jobs WHERE id = :job"),
    "all private jobs": rows("SELECT * FROM vestry.jobs WHERE privacy = 'private'"),
    "private leases": rows("SELECT * FROM vestry.leases WHERE privacy = 'private'"),
    "private receipts": rows("SELECT * FROM vestry.receipts WHERE privacy = 'private'"),
    "private documents of jobs": rows("SELECT * FROM vestry.job_documents WHERE privacy = 'private'"),
    "a private job's text in a shareable table": rows(
        "SELECT * FROM vestry.shareable_payloads WHERE job_id = :job", owners=True),
    "moving a private job to a cloud": rows("UPDATE vestry.jobs SET pool = 'cloud' WHERE id = :job"),
    "making a private job shareable": rows(
        "UPDATE vestry.jobs SET privacy = 'shareable' WHERE id = :job"),
    "running a private job again": rows(
        "UPDATE vestry.jobs SET state = 'queued', finished_at = NULL WHERE id = :job RETURNING *"),
    "a job of its own with a private payload": rows(
        """INSERT INTO vestry.jobs (id, kind, owner, privacy, latency, pool)
           VALUES (:job, 'embedding', 'x', 'shareable', 'bulk', 'cloud')"""),
    "a new payload for a private job": rows(
        "INSERT INTO vestry.private_payloads VALUES (:job, 'x', :job, 'x') RETURNING *"),
    "rerouting a private job": rows(
        "SELECT vestry.reroute_jobs_v1(gen_random_uuid(), ARRAY[:job]::uuid[], ARRAY['cloud'], "
        "ARRAY[NULL]::jsonb[]);;"
        "SELECT * FROM vestry.jobs WHERE id = :job"),
    "an egress record for a private job": rows(
        "SELECT vestry.record_egress_v1('openai', 1, ARRAY[:job]::uuid[])"),
    "locking private rows": rows("SELECT vestry.lock_roots_v1(ARRAY[:job]::uuid[])"),
    "enqueueing as a producer": rows(
        """SELECT * FROM vestry.enqueue_jobs_v1('owner-private', 'shareable', 'bulk',
           p_ids => ARRAY[gen_random_uuid()], p_kinds => ARRAY['embedding'], p_pools => ARRAY['gpu'],
           p_costs => ARRAY[1], p_keep_payload => ARRAY[true], p_result_ttl_s => ARRAY[60],
           p_texts => ARRAY['{}'])"""),
    "cancelling": rows("SELECT * FROM vestry.cancel_jobs_v1(ARRAY[:job]::uuid[])"),
    "forgetting": rows("SELECT * FROM vestry.forget_owner_v1('owner-private')"),
    "rewrapping": rows("SELECT vestry.rewrap_owner_keys_v1('{}', '{}', '{}', 'k')"),
    "becoming the private worker's role": rows("SET ROLE vestry_private;;SELECT 1"),
    "becoming the schema's owner": rows("SET SESSION AUTHORIZATION vestry_owner;;SELECT 1"),
    "its own password under another name": rows(
        "SELECT * FROM vestry.private_payloads", role="vestry_private"),
    "its own password as superuser": rows("SELECT 1", role="postgres"),
    "row security off": rows("SET row_security = off;;SELECT * FROM vestry.jobs"),
    "a grant to itself": rows("GRANT vestry_private TO vestry_cloud"),
    "a table's grant to itself": rows("GRANT SELECT ON vestry.private_payloads TO vestry_cloud"),
    "disabling a table's row security": rows("ALTER TABLE vestry.jobs DISABLE ROW LEVEL SECURITY"),
    "a definer function in the schema": rows(
        """CREATE FUNCTION vestry.steal() RETURNS SETOF vestry.private_payloads LANGUAGE sql
           SECURITY DEFINER AS 'SELECT * FROM vestry.private_payloads'"""),
    "a table that shadows one of a definer function": rows(
        """CREATE TEMP TABLE jobs (id uuid, privacy text, pool text, state text);;
           INSERT INTO pg_temp.jobs VALUES (:job, 'shareable', 'cloud', 'running');;
           SELECT vestry.record_egress_v1('openai', 1, ARRAY[:job]::uuid[])"""),
    "a function that shadows one of a definer function": rows(
        """CREATE FUNCTION pg_temp.cardinality(anyarray) RETURNS integer LANGUAGE sql AS 'SELECT 1';;
           SET search_path = pg_temp, vestry;;
           SELECT vestry.record_egress_v1('openai', 1, ARRAY[:job]::uuid[])"""),
    "a view with its creator's rights": rows(
        "CREATE TEMP VIEW v AS SELECT * FROM vestry.private_results;;SELECT * FROM v"),
    "a function that reports rows during a scan": rows(
        """CREATE FUNCTION pg_temp.show(text) RETURNS boolean LANGUAGE plpgsql COST 0.0000001
           AS $$ BEGIN RAISE NOTICE '%', $1; RETURN true; END $$;;
           SELECT id FROM vestry.jobs WHERE pg_temp.show(owner || coalesce(error_message, ''))"""),
    "statements of other sessions": rows("SELECT query FROM pg_stat_activity"),
    "counted statements": rows("SELECT query FROM pg_stat_statements"),
    "statistics of columns": rows("SELECT * FROM pg_stats WHERE tablename LIKE 'private%'"),
    "raw statistics": rows("SELECT * FROM pg_statistic"),
    "a file of the server": rows("SELECT pg_read_file('postgresql.conf')"),
    "a directory of the server": rows("SELECT pg_ls_dir('.')"),
    "a program run by the server": rows(
        "CREATE TEMP TABLE t (x text);;COPY t FROM PROGRAM 'cat /etc/passwd';;SELECT * FROM t"),
    "a file copied in": rows(
        "CREATE TEMP TABLE t (x text);;COPY t FROM '/etc/passwd';;SELECT * FROM t"),
    "large objects": rows("SELECT * FROM pg_largeobject"),
    "an extension that reads pages": rows("CREATE EXTENSION pageinspect"),
    "passwords": rows("SELECT rolname, rolpassword FROM pg_authid"),
    "row positions of a private table": rows(
        "SELECT ctid, xmin FROM vestry.private_payloads"),
    "a plan of a query it may not run": rows("EXPLAIN ANALYZE SELECT * FROM vestry.private_results"),
    "the channels": notifications,
}  # fmt: skip

BROKER: dict[str, Attempt] = {
    "all keys": command("KEYS", "*"),
    "all keys, by SCAN": command("SCAN", "0", "COUNT", "1000"),
    "private queues": lambda a: [a.broker().lrange(f"{PREFIX}private.{x}.gpu", 0, -1)
                                 for x in ("bulk", "interactive")],
    "a hint taken from a private queue": command("RPOP", f"{PREFIX}private.bulk.gpu"),
    "a hint put into a private queue": command("LPUSH", f"{PREFIX}private.bulk.gpu", "x"),
    "a queue of its class that is not its own": command("LRANGE", "vestry.shareable.shareable.bulk.gpu",
                                                      "0", "-1"),
    "a script on private keys": command("EVAL", "return redis.call('LRANGE', KEYS[1], 0, -1)", "1",
                                      f"{PREFIX}private.bulk.gpu"),
    "private keys copied to its own": command("COPY", f"{PREFIX}private.bulk.gpu",
                                            "vestry.shareable.shareable.bulk.cloud"),
    "a private queue moved to its own": command("LMOVE", f"{PREFIX}private.bulk.gpu",
                                              "vestry.shareable.shareable.bulk.cloud", "LEFT", "LEFT"),
    "all clients' commands": command("MONITOR"),
    "clients": command("CLIENT", "LIST"),
    "slow commands": command("SLOWLOG", "GET"),
    "users": command("ACL", "LIST"),
    "a new user": command("ACL", "SETUSER", "eve", "on", "nopass", "~*", "+@all"),
    "settings": command("CONFIG", "GET", "*"),
    "changed settings": command("CONFIG", "SET", "dir", "/tmp"),  # noqa: S108
    "a replica of its own": command("REPLICAOF", "127.0.0.1", "1"),
    "a module": command("MODULE", "LOAD", "/tmp/x.so"),  # noqa: S108
    "a dump": command("DUMP", f"{PREFIX}private.bulk.gpu"),
    "private events": subscribed(f"{PREFIX}/0.celeryev/*"),
    "every event": subscribed("*"),
    "remote control of private workers": command("PUBLISH", f"{PREFIX}/0.celery.pidbox", "{}"),
    "its own password as the private worker": command("PING", user="private"),
    "its own password as the dispatcher": command("PING", user="dispatcher"),
    "the default login": command("PING", user="default"),
    "a forged hint at a private job": forged("shareable.bulk.cloud"),
    "a forged hint, interactive": forged("shareable.interactive.cloud"),
    "a forged hint of another kind": forged("shareable.bulk.cloud", "generation"),
    "a forged hint that names a private lane": forged("shareable.bulk.cloud",
                                                      routing_key="private.bulk.gpu"),
}  # fmt: skip

ACCOUNT: dict[str, Attempt] = {
    "the key ring": read("keyring.json"),
    "all secrets": read("secrets", "secrets/*"),
    "the client's file": read("client.json"),
    "private workers' process directories": read("run/private-*", "run/private-*/*"),
    "the shareable workers' process directories": read("run/shareable-*-gpu", "run/shareable-*-gpu/*"),
    "the dispatcher's process directory": read("run/dispatcher", "run/dispatcher/*"),
    "Flower's process directories": read("run/flower-*", "run/flower-*/*"),
    "logs": read("logs", "logs/*"),
    "the database's files": read("postgres", "postgres/data/base", "/var/lib/vestry-*"),
    "the broker's files": read("valkey", "valkey/*"),
    "temporary files of others": read("/dev/shm/vestry-*", "run/private-bulk-cpu/vestry-*"),  # noqa: S108
    "core dumps": read("core", "run/core*", "/core*", "/var/crash", "core*"),
    **{f"{name}'s environment": of_process(name, "environ", "cmdline", "auxv", "stack", "io")
       for name in ("private-bulk-gpu", "private-bulk-cpu", "shareable-bulk-gpu")},
    **{f"{name}'s memory": memory_of(name) for name in ("private-bulk-gpu", "private-bulk-cpu")},
    "a private worker's descriptors": of_process("private-bulk-gpu", "fd/*", "fdinfo/*"),
    "the supervisor's descriptors": of_process("supervisor", "fd/*", "environ", "maps"),
    "killing a private worker for its core dump": signalled("private-bulk-gpu"),
    "the broker's memory": memory_of("valkey"),
    "the database's memory": memory_of("postgres"),
    "links for root to follow": linked,
    "changed code and settings of other processes": changed_code,
    "becoming root": lambda a: a.shell("su -c 'cat /proc/1/environ' root </dev/null; sudo -n id"),
}  # fmt: skip


def done_within(attempt: Attempt, adversary: Adversary) -> tuple[Any, str]:
    """Make an attempt. Returns its result, and the name of the error that refused it."""
    try:
        return attempt(adversary), ""
    except (psycopg.Error, redis.RedisError) as error:
        return str(error), type(error).__name__
    except subprocess.TimeoutExpired as error:
        return (error.stdout or b""), "TimeoutExpired"
