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
from tests.faults.report import Report
from tests.faults.strikes import Site

BACK_S: Final = 30.0
"""Within this time the killed child has been restarted and every process is ready."""
HOLDING_S: Final = 1.0
"""How long to wait until a worker holds a lease; the kill of an idle one loses nothing."""
NAMES: Final = {
    "dispatcher": "the dispatcher is killed",
    "reconciler": "the reconciler is killed",
    "postgres": "postgres restarts",
    "valkey": "the broker restarts empty",
    "guardian": "the guardian is killed",
}
"""Child that serves no lane, to the fault of its death."""


def kill_each_child(
    site: Site, rng: random.Random, report: Report, calm: Callable[[], object]
) -> None:
    """Kill every child once, in random order.

    Args:
        site: the stack, every process ready.
        rng: of the order.
        report: counts kills and faults.
        calm: waits until no unfinished job would die of another crash.
    """
    names = sorted(site.up.pids())
    if set(site.up.pids().values()) != site.up.child_pids():
        site.history.write(
            "violation", detail="the supervisor has children that its state file lacks"
        )
    report.children.update(dict.fromkeys(names, 0))
    rng.shuffle(names)
    for name in names:
        calm()
        before = site.up.pids()
        fault = NAMES.get(name, WORKER_KILLED)
        site.history.write("mishap", name=fault)
        _kill(site, name, before[name])
        report.children[name] += 1
        report.mishaps[fault] += 1
        report.kills[fault] += 1
        back = _eventually(lambda: _is_back(site, name, before[name]))  # noqa: B023 - called at once
        site.history.write("mishap over", name=fault)
        if not back:
            site.history.write(
                "violation", detail=f"{name} was not ready {BACK_S:.0f} s after its death"
            )
        changed = {other for other, pid in site.up.pids().items() if pid != before[other]} - {name}
        if changed:
            detail = f"the death of {name} ended {', '.join(sorted(changed))} too"
            site.history.write("violation", detail=detail)


def _kill(site: Site, name: str, pid: int) -> None:
    """Kill a child; a worker while it holds a lease, if it gets one soon."""
    if name in site.up.workers():
        until = time.monotonic() + HOLDING_S
        while True:
            last = time.monotonic() > until
            with psycopg.connect(site.up.superuser_url, autocommit=True) as conn:
                if strikes._kill_holder(site, conn, name, even_idle=last):
                    return
            time.sleep(strikes.LOOK_S)
    strikes.signalled(pid, signal.SIGKILL)


def _is_back(site: Site, name: str, killed: int) -> bool:
    return site.up.pids()[name] not in {None, killed} and site.up.all_ready()


def _eventually(check: Callable[[], Any]) -> bool:
    until = time.monotonic() + BACK_S
    while not check():
        if time.monotonic() > until:
            return False
        time.sleep(strikes.LOOK_S)
    return True
