"""Kill each child of `vestry up` by name, while the others work: only that child is restarted."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from typing import Final

import psycopg

from tests.faults import stack_faults
from tests.faults.aggregate import WORKER_KILLED
from tests.faults.job_mix import GOOD
from tests.faults.producers import OWNERS
from tests.faults.report import Report
from tests.faults.stack_faults import StackUnderTest
from tests.page_files import drawn, pdf, scanned_page
from vestry import Embedding, Ocr, Vestry
from vestry.jobs.base import JobRequest

RESTART_S: Final = 30.0
"""Within this time the killed child has been restarted and every process is ready."""
LEASE_HELD_S: Final = 20.0
"""Within this time a worker holds a lease on a job enqueued for it."""
FAULTS: Final = {
    "dispatcher": "the dispatcher is killed",
    "reconciler": "the reconciler is killed",
    "postgres": "postgres restarts",
    "valkey": "the broker restarts empty",
    "guardian": "the guardian is killed",
}
"""Child that serves no lane, to the name of the fault."""
SCANS: Final = pdf(*[scanned_page(drawn("A quiet day", "at the office."))] * 3)
JOBS: Final[dict[str, Callable[[], JobRequest]]] = {
    "gpu": lambda: Embedding(texts=["echo!sleep=1 in the middle of work"]),
    "cpu": lambda: Ocr(SCANS),
}
"""Pool to a job of about one second."""


def kill_each_child(
    stack: StackUnderTest,
    rng: random.Random,
    report: Report,
    await_crashed_jobs: Callable[[], object],
) -> None:
    """Kill every child once, each worker while it holds a lease.

    Args:
        stack: every process is ready.
        rng: determines the order.
        report: counts kills and faults.
        await_crashed_jobs: waits until no unfinished job would become dead by another crash.
    """
    if set(stack.up.pids().values()) != stack.up.child_pids():
        stack.history.write("violation", detail="the supervisor has children that its state lacks")
    workers = sorted(stack.up.workers())
    others = sorted(stack.up.pids().keys() - set(workers))
    report.children.update(dict.fromkeys((*workers, *others), 0))
    rng.shuffle(workers)
    rng.shuffle(others)
    # The workers last: a job that one of them held crashes once, and no other fault may hit it.
    for name in (*others, *workers):
        before = stack.up.pids()
        fault = FAULTS.get(name, WORKER_KILLED)
        if name in others:
            await_crashed_jobs()
            stack.history.write("fault", name=fault)
            killed = stack_faults.send_signal(before[name], signal.SIGKILL)
        else:
            killed = _kill_at_work(stack, name)
            stack.history.write("fault", name=fault)
        report.children[name] += killed
        report.faults[fault] += killed
        report.kills[fault] += killed
        restarted = stack_faults.wait_for(lambda: _restarted(stack, name, before[name]), RESTART_S)  # noqa: B023 - called in this iteration
        stack.history.write("fault over", name=fault)
        if not restarted:
            detail = f"{name} was not ready {RESTART_S:.0f} s after it was killed"
            stack.history.write("violation", detail=detail)
        changed = {other for other, pid in stack.up.pids().items() if pid != before[other]} - {name}
        if changed:
            detail = f"the end of {name} also ended {', '.join(sorted(changed))}"
            stack.history.write("violation", detail=detail)


def _kill_at_work(stack: StackUnderTest, name: str) -> bool:
    """Kill a worker while it holds a lease; False if it claims no job."""
    (lane,) = next(process["lanes"] for process in stack.up.processes() if process["name"] == name)
    privacy, latency, pool = lane.split(".")
    client = stack.up.client
    with (
        Vestry(client["database_url"], client["keyring"]) as vestry,
        psycopg.connect(client["database_url"], autocommit=True) as conn,
        psycopg.connect(stack.up.superuser_url, autocommit=True) as admin,
    ):

        def enqueue_and_kill() -> bool:
            job = vestry.enqueue(
                conn, JOBS[pool](), owner=OWNERS[0], privacy=privacy, latency=latency
            )
            stack.history.write(
                "committed", jobs=[str(job.id)], variant="held by a killed worker", ends=GOOD
            )
            return stack_faults.wait_for(
                lambda: stack_faults.kill_lease_holder(stack, admin, name, even_idle=False),
                LEASE_HELD_S / 4,
            )

        return stack_faults.wait_for(enqueue_and_kill, LEASE_HELD_S)


def _restarted(stack: StackUnderTest, name: str, killed: int) -> bool:
    return stack.up.pids()[name] not in {None, killed} and stack.up.all_ready()
