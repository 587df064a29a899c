"""Each child of `vestry up` is killed in the middle of an index, which then completes unaided.

All four lanes of both privacy classes are at work when it happens, so that every worker has
something to lose. The victims are those that `Stack.specs` names: a child added later is killed
too.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Collection, Mapping
from itertools import product
from typing import Any

import psutil
import psycopg
import pytest
import redis

from tests.stacks import ECHO_SETTINGS, ECHO_WITH_FLOWER, FLOWERS, INFERENCE
from tests.temp_stack_dir import temporary_home
from tests.waiting import BULK_S, eventually
from vestry import Document, Embedding, IndexResult, Vestry
from vestry.jobs.results import JobRef
from vestry.lanes import Latency, Privacy
from workers.home import Home
from workers.stack.background import BackgroundStack
from workers.stack.postgres import SUPERUSER, PostgresServer
from workers.stack.processes import EmbeddedStack, StackOptions
from workers.stack.valkey import ValkeyServer

pytestmark = pytest.mark.stack(ECHO_WITH_FLOWER)

KEEPER = "keeper"
JOBS, PER_JOB = 20, 4
"""Of each lane: jobs, and documents of each."""


def children() -> list[str]:
    with temporary_home() as path:
        home = Home(path)
        home.create()
        return [
            spec.name
            for spec in EmbeddedStack(
                home, StackOptions(ECHO_SETTINGS, only=(*INFERENCE, *FLOWERS))
            ).specs()
        ]


CHILDREN = children()


def pids(up: BackgroundStack) -> dict[str, int | None]:
    """Every direct child of the supervisor, by its name."""
    state = up.state()
    return {p["name"]: p["pid"] for p in state["processes"]} | {KEEPER: state[KEEPER]}


def lanes(up: BackgroundStack, victim: str) -> set[str]:
    """The lanes that a worker serves; all of them for a process that serves none."""
    served = {p["name"]: set(p["lanes"]) for p in up.state()["processes"]}
    return served.get(victim) or set().union(*served.values())


def all_ready(up: BackgroundStack) -> bool:
    return all(p["state"] == "ready" for p in up.state()["processes"])


def enqueue(
    vestry: Vestry, conn: Any, owner: str, last: Collection[str] = ()
) -> dict[str, list[JobRef]]:
    """An index in every lane, by lane; `last` in these, so that they are not done when all are in."""
    return {
        f"{privacy}.{latency}.gpu": vestry.enqueue_many(
            conn,
            (
                Embedding(
                    documents=[
                        Document(f"entry {n} {k} echo!sleep=0.05", id=f"{n}.{k}")
                        for k in range(PER_JOB)
                    ],
                    source=f"diary-{latency}",
                )
                for n in range(JOBS)
            ),
            owner=owner,
            privacy=privacy,
            latency=latency,
        )
        for privacy, latency in sorted(
            product(Privacy, Latency), key=lambda pair: ".".join((*pair, "gpu")) in last
        )
    }


def under_way(vestry: Vestry, jobs: Mapping[str, list[JobRef]]) -> bool:
    """Whether some are running; in all lanes at once there need not be any, on a busy machine."""
    return any(s.state == "running" for refs in jobs.values() for s in vestry.statuses(refs))


def succeeded(vestry: Vestry, jobs: Mapping[str, list[JobRef]]) -> bool:
    """Whether all have."""
    try:
        return all(
            {s.state for s in vestry.statuses(refs)} == {"succeeded"} for refs in jobs.values()
        )
    except Exception:  # the database itself may be the victim
        return False


def kill(up: BackgroundStack, victim: str) -> int:
    pid = pids(up)[victim]
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    return pid


def await_all(up: BackgroundStack, vestry: Vestry, jobs: Mapping[str, list[JobRef]]) -> None:
    """Wait until every job has succeeded; the error says what those that have not are waiting for."""
    try:
        eventually(lambda: succeeded(vestry, jobs), within=BULK_S)
    except AssertionError:
        refs = [ref.id for lane in jobs.values() for ref in lane]
        with psycopg.connect(PostgresServer(Home(up.home)).url(SUPERUSER)) as admin:
            open_jobs = admin.execute(
                """SELECT lane, state, suspect, crashes, attempt, error_code, count(*),
                          min(run_at - now()), count(turn)
                   FROM vestry.jobs WHERE id = ANY(%s) AND state <> 'succeeded'
                   GROUP BY 1, 2, 3, 4, 5, 6""",
                [refs],
            ).fetchall()
            leases = admin.execute(
                "SELECT worker, expires_at - now(), max_until - now() FROM vestry.leases"
            ).fetchall()
        processes = [(p["name"], p["state"], p["restarts"]) for p in up.state()["processes"]]
        raise AssertionError(f"{open_jobs}\n{leases}\n{processes}") from None


def nothing_lost_and_nothing_twice(
    up: BackgroundStack, vestry: Vestry, jobs: Mapping[str, list[JobRef]], owner: str
) -> None:
    refs = [ref for lane in jobs.values() for ref in lane]
    results = [vestry.result(ref) for ref in refs]
    totals = [(r.documents, r.embedded) for r in results if isinstance(r, IndexResult)]
    assert totals == [(PER_JOB, PER_JOB)] * len(refs)
    documents = len(refs) * PER_JOB
    with psycopg.connect(PostgresServer(Home(up.home)).url(SUPERUSER)) as admin:
        for table, distinct in (
            ("documents", "(source, external_hash)"),
            ("chunks", "document_id"),
            ("embeddings", "chunk_id"),
        ):
            for privacy in Privacy:
                counted = admin.execute(
                    f"""SELECT count(*), count(DISTINCT {distinct})
                        FROM vestry.{privacy}_{table} WHERE owner = %s""",
                    [owner],
                ).fetchone()
                half = documents // len(Privacy)
                assert counted == (half, half), f"{privacy}_{table}"
        finished = admin.execute(
            """SELECT count(*), count(DISTINCT job_id) FROM vestry.receipts
               WHERE outcome = 'succeeded' AND job_id = ANY(%s)""",
            [[ref.id for ref in refs]],
        ).fetchone()
    assert finished == (len(refs), len(refs))


def test_the_victims_are_all_the_children_there_are(up: BackgroundStack) -> None:
    assert set(pids(up)) == {*CHILDREN, KEEPER}
    assert {"private-bulk-gpu", "shareable-bulk-gpu", "flower-private", "flower-shareable"} <= set(
        CHILDREN
    )
    found = psutil.Process(up.supervisor.pid).children()
    assert {p.pid for p in found} == set(pids(up).values())


@pytest.mark.timeout(900)
@pytest.mark.parametrize("victim", [*CHILDREN, KEEPER])
def test_killing_any_child_during_an_index_loses_and_repeats_nothing(
    up: BackgroundStack, vestry: Vestry, conn: Any, victim: str
) -> None:
    eventually(lambda: all_ready(up))
    before = pids(up)
    owner = f"kill-{victim}"
    at_risk = lanes(up, victim)
    jobs = enqueue(vestry, conn, owner, at_risk)
    eventually(lambda: under_way(vestry, {lane: jobs[lane] for lane in at_risk}))
    pid = kill(up, victim)

    await_all(up, vestry, jobs)
    nothing_lost_and_nothing_twice(up, vestry, jobs, owner)
    eventually(lambda: pids(up)[victim] not in {pid, None} and all_ready(up), within=BULK_S)
    assert {name for name, pid in pids(up).items() if pid != before[name]} == {victim}


def test_emptying_the_broker_during_an_index_loses_and_repeats_nothing(
    up: BackgroundStack, vestry: Vestry, conn: Any
) -> None:
    jobs = enqueue(vestry, conn, "emptied")
    eventually(lambda: under_way(vestry, jobs))
    server = ValkeyServer(Home(up.home))
    for privacy in Privacy:
        with redis.Redis.from_url(server.url(privacy)) as broker:
            for key in broker.scan_iter(match=f"vestry.{privacy}.*", count=1000):
                broker.delete(key)

    await_all(up, vestry, jobs)
    nothing_lost_and_nothing_twice(up, vestry, jobs, "emptied")
