"""Random tokens in every private field: none may be found in any location that is not sealed.

A positive control first finds a planted token in each location and each encoding.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import httpx2
import pytest

from models.bootstrap import PRIVATE_WORKER, ROLES
from tests.privacy.conftest import CANARY, Canary
from tests.privacy.locations import Contents
from tests.privacy.needles import (
    Hit,
    Marker,
    byte_encodings,
    detector,
    is_text,
    leaked_forms,
    search,
)
from tests.waiting import eventually
from vestry import Embedding
from workers.app import make_app
from workers.stack.postgres import SUPERUSER
from workers.stack.valkey import ValkeyServer

pytestmark = [pytest.mark.slow, pytest.mark.stack(CANARY)]

Planted = Mapping[str, bytes]
DUMPS = [f"dump by {role}" for role in (*ROLES, SUPERUSER) if role != PRIVATE_WORKER]
BROKER = ["broker keys", "broker traffic", "broker memory"]
FLOWERS = ["flower of private", "flower of shareable"]
CONTENT_FREE = [*BROKER, *FLOWERS, "logs", "statements", "notices", "processes",
                "producers' errors", "temporary files"]  # fmt: skip
"""Locations that must not have shareable content either."""
EVERYWHERE = [*CONTENT_FREE, *DUMPS, "directory", "cloud endpoint"]


def leaks(seen: Mapping[str, Contents], names: list[str], marker: Marker) -> list[Hit]:
    """Every token found in the named locations."""
    return [hit for name in names if name in seen for hit in search(name, seen[name], marker)]


def test_list_of_locations_is_complete(canary: Canary) -> None:
    assert set(canary.seen) | {"broker memory"} == set(EVERYWHERE)


@pytest.mark.parametrize("name", EVERYWHERE)
def test_planted_tokens_are_found_in_each_location_in_every_encoding(
    canary: Canary, name: str
) -> None:
    if name not in canary.seen:
        pytest.skip("this system does not allow reading another process's memory")
    markers = {encoding: Marker() for encoding in leaked_forms("")}
    planted = {
        encoding: leaked_forms(marker.text)[encoding] for encoding, marker in markers.items()
    }
    if name in [*DUMPS, *FLOWERS, "statements", "notices", "processes", "producers' errors"]:
        # Text cannot contain raw UTF-16; binary columns have a separate test.
        planted = {encoding: form for encoding, form in planted.items() if is_text(form)}
    with PLANTS[name](canary, planted):
        seen = detector({encoding: markers[encoding] for encoding in planted})
        detected = set().union(*(seen(content) for _, content in canary.stack.locations()[name]()))
    assert detected == set(planted)


def test_planted_bytes_in_a_column_are_found_in_every_encoding(canary: Canary) -> None:
    markers = {encoding: Marker() for encoding in leaked_forms("")}
    planted = {
        encoding: leaked_forms(marker.text)[encoding] for encoding, marker in markers.items()
    }
    insert = """INSERT INTO vestry.private_results (job_id, owner, key_id, body, expires_at)
                VALUES (%s, %s, gen_random_uuid(), %s, 'infinity')"""
    with canary.stack.superuser() as conn:
        jobs = [uuid.uuid4() for _ in planted]
        for job, form in zip(jobs, planted.values(), strict=True):
            conn.execute(insert, [job, canary.private.owner, form])
        contents = list(canary.stack.locations()["dump by vestry_producer"]())
        conn.execute("DELETE FROM vestry.private_results WHERE job_id = ANY (%s)", [jobs])
    seen = detector(markers)
    assert set().union(*(seen(content) for _, content in contents)) == set(planted)


# A cloud worker sees only the jobs of its own lanes, and there are none.
SHOWING_JOBS = ["broker traffic", *FLOWERS, *DUMPS, "logs", "notices"]
SHOWING_JOBS.remove("dump by vestry_cloud")
SHOWING_HINTS = {"broker traffic", "logs"}
"""They show a job only by its hint, which an idle interactive worker does not need."""


@pytest.mark.parametrize("name", SHOWING_JOBS)
def test_each_location_shows_the_jobs_that_ran(canary: Canary, name: str) -> None:
    """Each location was read after the jobs ran: a job's id is allowed everywhere."""
    scenario = canary.shareable if name in {"flower of shareable", "dump by vestry_shareable"} else (
        canary.private
    )  # fmt: skip
    jobs = [str(job.id).encode() for _, job, _ in scenario.jobs]
    needles = jobs if name in SHOWING_HINTS else jobs[:1]
    assert any(job in content for job in needles for _, content in canary.seen[name])


def test_logs_are_at_debug(canary: Canary) -> None:
    contents = dict(canary.seen["logs"])
    for worker in ("private-interactive-gpu.log", "shareable-bulk-gpu.log"):
        assert b" DEBUG " in contents[worker]


def test_private_content_is_found_nowhere(canary: Canary) -> None:
    assert not leaks(canary.seen, EVERYWHERE, canary.private.marker)


def test_cloud_was_called_for_shareable_jobs_and_each_call_is_recorded(canary: Canary) -> None:
    """Private content at the endpoint would therefore be found."""
    assert leaks(canary.seen, ["cloud endpoint"], canary.shareable.marker)
    with canary.stack.superuser() as conn:
        recorded = conn.execute("SELECT count(*) FROM vestry.egress").fetchone()
        jobs = conn.execute(
            """SELECT j.id, j.privacy, j.pool FROM vestry.egress e, unnest(e.job_ids) u(id)
               JOIN vestry.jobs j USING (id)"""
        ).fetchall()
    assert recorded == (len([o for o in canary.stack.cloud.requests if "/chat" in o.path]),)
    assert {row[1:] for row in jobs} == {("shareable", "cloud")}


def test_degraded_jobs_are_marked(canary: Canary) -> None:
    for about, job, _ in canary.private.jobs:
        degraded = canary.private.vestry.status(job).degraded
        assert degraded == (about.endswith("degraded") or about == "grounded"), about


def test_shareable_content_is_in_its_tables_only(canary: Canary) -> None:
    assert not leaks(canary.seen, CONTENT_FREE, canary.shareable.marker)
    stored = leaks(canary.seen, ["dump by vestry_producer"], canary.shareable.marker)
    assert stored, "the scenario planted nothing"


def test_text_that_was_not_kept_is_not_in_the_tables(canary: Canary) -> None:
    """Searched for in shareable tables, which are not sealed."""
    hits = leaks(canary.seen, DUMPS, canary.shareable.marker)
    stored = {name for hit in hits for name in hit.fields}
    assert {"shareable: entry, text", "shareable: not kept, id"} <= stored
    assert not {name for name in stored if "not kept, text" in name or ": query" in name}


def test_sealed_text_that_was_not_kept_is_deleted(canary: Canary) -> None:
    job = next(ref for about, ref, _ in canary.private.jobs if about == "text not kept")
    with canary.stack.superuser() as conn:
        payloads = conn.execute(
            "SELECT count(*) FROM vestry.private_payloads WHERE job_id = %s", [job.id]
        ).fetchone()
        texts = conn.execute(
            """SELECT count(*), count(c.text) FROM vestry.private_chunks c
               JOIN vestry.job_documents d USING (document_id) WHERE d.job_id = %s""", [job.id]
        ).fetchone()  # fmt: skip
    assert payloads == (0,)
    assert texts == (1, 0)


def test_key_ring_is_passed_to_private_workers_only(canary: Canary) -> None:
    """By a descriptor: no process gets the path of the file."""
    seen = {
        process["name"]: b"\n".join(content)
        for process in canary.up.state()["processes"]
        for name, content in list(canary.stack.watch.processes.items())
        if name.endswith(f" {process['pid']}")
    }
    expected = {
        "private-interactive-gpu",
        "private-bulk-gpu",
        "private-interactive-cpu",
        "private-bulk-cpu",
    }
    if os.geteuid() != 0:
        # An ordinary account reads a private worker's environment before the worker denies it, or not.
        expected &= {name for name, content in seen.items() if b"VESTRY_PRIVACY=" in content}
    holders = {name for name, content in seen.items() if b"VESTRY_KEYRING_FD=" in content}
    assert holders == expected
    ring = str(canary.stack.home.keyring).encode()
    assert not [name for name, content in seen.items() if ring in content]


def test_key_ring_is_in_its_file_only(canary: Canary) -> None:
    keys = json.loads(canary.keyring)["keys"]
    key = base64.b64decode(next(iter(keys.values())))
    needles = {needle for _, needle in byte_encodings("the key", key)}
    locations = {
        (name, where)
        for name, contents in canary.seen.items()
        for where, content in contents
        if any(needle in content for needle in needles)
    }
    assert locations == {("directory", canary.stack.home.keyring.name)}


def test_planted_leaks_are_reported(canary: Canary) -> None:
    leak = Marker()
    scenario, stack = canary.private, canary.stack
    # Private text routed as shareable, a careless log line, an argument in a message.
    scenario.vestry.enqueue(
        scenario.conn, Embedding(texts=[leak.token("misrouted")]), owner="x", privacy="shareable"
    )
    with (stack.home.logs / "private-bulk-gpu.log").open("a", encoding="utf-8") as log:
        log.write(f"embedding {leak.token('logged')}\n")
    with stack.observer() as broker:
        app = make_app(ValkeyServer(stack.home).url("private"), "private")
        with app.events.default_dispatcher(hostname="careless") as events:
            token = leak.token("argument")
            events.send("task-received", uuid=str(uuid.uuid4()), name="embedding", args=token)
        broker.set("vestry.private.careless", leak.token("kept"))
        for location in ("broker traffic", "flower of private"):
            read = stack.locations()[location]
            eventually(
                lambda read=read, name=location: bool(leaks({name: list(read())}, [name], leak))
            )
        seen = {name: list(read()) for name, read in stack.locations().items()}
        hits = leaks(seen, EVERYWHERE, leak)
        broker.delete("vestry.private.careless")
    assert {hit.location for hit in hits} >= {
        "dump by vestry_shareable", "dump by vestry_owner", "logs", "directory", "broker keys",
        "broker traffic", "flower of private",
    }  # fmt: skip
    with pytest.raises(AssertionError, match="misrouted"):
        assert not hits, "; ".join(map(str, hits))


@contextmanager
def in_broker(canary: Canary, planted: Planted) -> Iterator[None]:
    with canary.stack.observer() as broker:
        broker.rpush("vestry.private.control", *planted.values())
        yield
        broker.delete("vestry.private.control")


@contextmanager
def in_broker_traffic(canary: Canary, planted: Planted) -> Iterator[None]:
    before = len(canary.stack.watch.traffic())
    with in_broker(canary, planted):
        eventually(lambda: b"vestry.private.control" in canary.stack.watch.traffic()[before:])
        yield


@contextmanager
def in_logs(canary: Canary, planted: Planted) -> Iterator[None]:
    path = canary.stack.home.logs / "control.log"
    path.write_bytes(b"\n".join(planted.values()))
    yield
    path.unlink()


@contextmanager
def in_directory(canary: Canary, planted: Planted) -> Iterator[None]:
    path = canary.stack.home.run / "control.bin"
    # Across the boundary of two chunks that are read.
    path.write_bytes(bytes(8 * 1024 * 1024 - 500) + b"\n".join(planted.values()))
    yield
    path.unlink()


@contextmanager
def in_temporary_files(canary: Canary, planted: Planted) -> Iterator[None]:
    path = canary.stack.home.run / "private-bulk-cpu" / "control.bin"
    path.write_bytes(b"\n".join(planted.values()))
    yield
    path.unlink()


@contextmanager
def at_endpoint(canary: Canary, planted: Planted) -> Iterator[None]:
    cloud = canary.stack.cloud
    before = len(cloud.requests)
    with httpx2.Client(base_url=cloud.url, trust_env=False) as client:
        client.post("/v1/chat/completions", content=b"\n".join(planted.values()))
    yield
    del cloud.requests[before:]


@contextmanager
def in_statements(canary: Canary, planted: Planted) -> Iterator[None]:
    with canary.stack.superuser() as conn:
        for form in map(bytes.decode, planted.values()):
            # An idle session shows its last statement.
            conn.execute(f"SELECT 1 /* {form} */")
            eventually(
                lambda needle=form: any(
                    needle in seen for seen in list(canary.stack.watch.statements)
                )
            )
        yield


@contextmanager
def in_notices(canary: Canary, planted: Planted) -> Iterator[None]:
    with canary.stack.superuser() as conn:
        for form in planted.values():
            conn.execute("SELECT pg_notify('vestry_done', %s)", [form.decode()])
    payloads = {f"vestry_done {form.decode()}" for form in planted.values()}
    eventually(lambda: payloads <= set(canary.stack.watch.notices))
    yield


@contextmanager
def in_processes(_: Canary, planted: Planted) -> Iterator[None]:
    forms = [form.decode() for form in planted.values()]
    half = len(forms) // 2
    environment = {f"CONTROL_{n}": value for n, value in enumerate(forms[half:])}
    script = "import sys; print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", script, *forms[:half]],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()
        yield
        process.communicate()


@contextmanager
def in_errors(canary: Canary, planted: Planted) -> Iterator[None]:
    canary.stack.errors += [form.decode("latin-1") for form in planted.values()]
    yield
    del canary.stack.errors[-len(planted) :]


@contextmanager
def in_tables(canary: Canary, planted: Planted) -> Iterator[None]:
    """A dead job of a cloud lane: every role that reads jobs sees its error message."""
    insert = """INSERT INTO vestry.jobs
      (id, kind, owner, privacy, latency, pool, state, finished_at, error_message)
      VALUES (%s, 'embedding', 'x', 'shareable', 'bulk', 'cloud', 'dead', now(), %s)"""
    with canary.stack.superuser() as conn:
        jobs = [uuid.uuid4() for _ in planted]
        for job, form in zip(jobs, planted.values(), strict=True):
            conn.execute(insert, [job, form.decode()])
        yield
        conn.execute("DELETE FROM vestry.jobs WHERE id = ANY (%s)", [jobs])


def in_flower(privacy: str) -> Callable[[Canary, Planted], AbstractContextManager[None]]:
    @contextmanager
    def plant(canary: Canary, planted: Planted) -> Iterator[None]:
        app = make_app(ValkeyServer(canary.stack.home).url(privacy), privacy)
        last = str(uuid.uuid4())
        with app.events.default_dispatcher(hostname="control") as events:
            for form in planted.values():
                last = str(uuid.uuid4())
                events.send("task-received", uuid=last, name="control", args=form.decode())
        read = canary.stack.locations()[f"flower of {privacy}"]
        eventually(lambda: any(last.encode() in content for _, content in read()))
        yield

    return plant


PLANTS: dict[str, Callable[[Canary, Planted], AbstractContextManager[None]]] = {
    "broker keys": in_broker,
    "broker traffic": in_broker_traffic,
    "broker memory": in_broker,
    "logs": in_logs,
    "directory": in_directory,
    "temporary files": in_temporary_files,
    "cloud endpoint": at_endpoint,
    "statements": in_statements,
    "notices": in_notices,
    "processes": in_processes,
    "producers' errors": in_errors,
    "flower of private": in_flower("private"),
    "flower of shareable": in_flower("shareable"),
    **dict.fromkeys(DUMPS, in_tables),
}
