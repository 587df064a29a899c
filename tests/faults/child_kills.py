"""Each child of `vestry up` is killed by name, while the others work: it alone is started again."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from typing import Any, Final

import psycopg

from tests.faults import strikes
from tests.faults.aggregate import WORKER_KILLED
from tests.faults.job_mix import GOOD
from tests.faults.producers import OWNERS
from tests.faults.report import Report
from tests.faults.strikes import Site
from tests.page_files import drawn, pdf, scanned_page
from vestry import Embedding, Ocr, Vestry
from vestry.jobs.base import JobRequest

BACK_S: Final = 30.0
"""Within this time the killed child has been restarted and every process is ready."""
HOLDING_S: Final = 20.0
"""Within this time a worker holds a lease on the jobs that it is given."""
NAMES: Final = {
    "dispatcher": "the dispatcher is killed",
    "reconciler": "the reconciler is killed",
    "postgres": "postgres restarts",
    "valkey": "the broker restarts empty",
    "guardian": "the guardian is killed",
}
"""Child that serves no lane, to the fault of its death."""
SCANS: Final = pdf(*[scanned_page(drawn("A quiet day", "at the office."))] * 3)
JOBS: Final[dict[str, Callable[[], JobRequest]]] = {
    "gpu": lambda: Embedding(texts=["echo!sleep=1 in the middle of work"]),
    "cpu": lambda: Ocr(SCANS),
}
"""Pool to a job that takes its worker a second."""


def kill_each_child(
    site: Site, rng: random.Random, report: Report, calm: Callable[[], object]
) -> None:
    """Kill every child once, each worker while it holds a lease.

    Args:
        site: the stack, every process ready.
        rng: of the order.
        report: counts kills and faults.
        calm: waits until no unfinished job would die of another crash.
    """
    if set(site.up.pids().values()) != site.up.child_pids():
        site.history.write("violation", detail="the supervisor has children that its state lacks")
    workers = sorted(site.up.workers())
    others = sorted(site.up.pids().keys() - set(workers))
    report.children.update(dict.fromkeys((*workers, *others), 0))
    rng.shuffle(workers)
    rng.shuffle(others)
    # The workers last: a job that one of them held crashes once, and no other fault may hit it.
    for name in (*others, *workers):
        before = site.up.pids()
        fault = NAMES.get(name, WORKER_KILLED)
        if name in others:
            calm()
            site.history.write("mishap", name=fault)
            killed = strikes.signalled(before[name], signal.SIGKILL)
        else:
            killed = _kill_at_work(site, name)
            site.history.write("mishap", name=fault)
        report.children[name] += killed
        report.mishaps[fault] += killed
        report.kills[fault] += killed
        back = _eventually(lambda: _is_back(site, name, before[name]), BACK_S)  # noqa: B023 - at once
        site.history.write("mishap over", name=fault)
        if not back:
            detail = f"{name} was not ready {BACK_S:.0f} s after its death"
            site.history.write("violation", detail=detail)
        changed = {other for other, pid in site.up.pids().items() if pid != before[other]} - {name}
        if changed:
            detail = f"the death of {name} ended {', '.join(sorted(changed))} too"
            site.history.write("violation", detail=detail)


def _kill_at_work(site: Site, name: str) -> bool:
    """Give a worker jobs, and kill it while it holds a lease; False if it gets none."""
    (lane,) = next(process["lanes"] for process in site.up.processes() if process["name"] == name)
    privacy, latency, pool = lane.split(".")
    client = site.up.client
    with (
        Vestry(client["database_url"], client["keyring"]) as vestry,
        psycopg.connect(client["database_url"], autocommit=True) as conn,
        psycopg.connect(site.up.superuser_url, autocommit=True) as admin,
    ):

        def held_and_killed() -> bool:
            job = vestry.enqueue(
                conn, JOBS[pool](), owner=OWNERS[0], privacy=privacy, latency=latency
            )
            site.history.write(
                "committed", jobs=[str(job.id)], variant="held by a killed worker", ends=GOOD
            )
            return _eventually(
                lambda: strikes._kill_holder(site, admin, name, even_idle=False), HOLDING_S / 4
            )

        return _eventually(held_and_killed, HOLDING_S)


def _is_back(site: Site, name: str, killed: int) -> bool:
    return site.up.pids()[name] not in {None, killed} and site.up.all_ready()


def _eventually(check: Callable[[], Any], within_s: float) -> bool:
    until = time.monotonic() + within_s
    while not check():
        if time.monotonic() > until:
            return False
        time.sleep(strikes.POLL_S)
    return True
