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
"""In which the supervisor must have started again what was killed, and everything is ready."""
HOLDING_S: Final = 1.0
"""How long a worker's holding something is waited for; a kill of an idle one loses nothing."""
NAMES: Final = {
    "dispatcher": "the dispatcher is killed",
    "reconciler": "the reconciler is killed",
    "postgres": "postgres restarts",
    "valkey": "the broker restarts empty",
    "guardian": "the guardian is killed",
}
"""Children that serve no lane, to the faults that their deaths are."""


def kill_each_child(
    site: Site, rng: random.Random, report: Report, calm: Callable[[], object]
) -> None:
    """Kill every child once, in random order.

    Args:
        site: the stack, every process ready.
        rng: of the order.
        report: takes kills, faults and violations.
        calm: waits until no job is about that a second crash would kill.
    """
    names = sorted(site.up.pids())
    if set(site.up.pids().values()) != site.up.child_pids():
        site.history.write("violation", told="the supervisor has children that its state lacks")
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
                "violation", told=f"{name} was not back {BACK_S:.0f} s after it died"
            )
        changed = {other for other, pid in site.up.pids().items() if pid != before[other]} - {name}
        if changed:
            told = f"the death of {name} took along {', '.join(sorted(changed))}"
            site.history.write("violation", told=told)


def _kill(site: Site, name: str, pid: int) -> None:
    """SIGKILL; to a worker while it holds something, if that comes about soon."""
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
