"""Faults of a real stack: instantaneous ones, and lasting ones."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import psycopg
import redis

from tests.faults import messages, servers
from tests.faults.lab_up import LabUp
from tests.faults.ledger import History
from tests.faults.proxy import Mode, Proxy

FLAP_S: Final = 0.4
"""Duration of each phase of a flapping connection, up and down."""
ATTEMPTS: Final = 40
"""Attempts to kill a worker that holds a lease."""
POLL_S: Final = 0.05
RESTART_S: Final = 20.0
"""Longest time in which the supervisor must restart a killed process."""
_HOLDERS: Final = "SELECT DISTINCT split_part(worker, '@', 1) FROM vestry.leases"
_LEASES: Final = "SELECT id::text FROM vestry.leases WHERE worker LIKE %s"
_CRASHED: Final = """SELECT EXISTS (SELECT FROM vestry.leases l JOIN vestry.jobs j ON j.lease_id = l.id
  WHERE l.worker LIKE %s AND l.exclusive AND j.crashes >= 1)"""


@dataclass(slots=True)
class StackUnderTest:
    """The stack and the proxies between its parts."""

    up: LabUp
    database: Proxy
    broker: Proxy
    history: History
    rng: random.Random
    forged: int = 0
    stopped: list[int] = field(default_factory=list)
    """Ids of processes stopped by SIGSTOP."""

    def start(self) -> None:
        """Start the supervisor."""
        self.up.start(self.database.port, self.broker.port)

    def administrator(self) -> redis.Redis:
        """A broker client with all permissions, which bypasses the proxy."""
        return servers.administrator(
            f"redis://x@127.0.0.1:{self.up.broker_port}/0", self.up.administrator_password()
        )

    def stop(self, pid: int) -> bool:
        """Send SIGSTOP; False if the process has ended."""
        exists = send_signal(pid, signal.SIGSTOP)
        if exists:
            self.stopped.append(pid)
        return exists

    def resume(self, pid: int) -> None:
        """Send SIGCONT if the process still runs."""
        self.stopped.remove(pid)
        if pid in {process["pid"] for process in self.up.processes()}:
            send_signal(pid, signal.SIGCONT)

    def restore(self) -> None:
        """End all lasting faults."""
        for pid in list(self.stopped):
            self.resume(pid)
        self.database.mode = self.broker.mode = Mode.OPEN
        with suppress(psycopg.Error):
            servers.limit_connections(self.up.superuser_url, -1)


def send_signal(pid: int, number: signal.Signals) -> bool:
    """Send a signal; False if the process has ended (the state file may still list it)."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def wait_for(check: Callable[[], object], within_s: float) -> bool:
    """Wait until a check is true; False after `within_s`."""
    until = time.monotonic() + within_s
    while not check():
        if time.monotonic() > until:
            return False
        time.sleep(POLL_S)
    return True


@dataclass(slots=True)
class LastingFault:
    """A fault that lasts until `end` is called."""

    name: str
    until: float
    end: Callable[[], object]


# -- instantaneous; each returns whether it could be done ------------------------------------------


def _kill_worker(stack: StackUnderTest) -> bool:
    """Kill a worker, one that holds a lease if possible: killing an idle one loses nothing."""
    for remaining in reversed(range(ATTEMPTS)):
        try:
            with psycopg.connect(stack.up.superuser_url, autocommit=True) as conn:
                workers = set(stack.up.workers())
                holders = workers & {row[0] for row in conn.execute(_HOLDERS)}
                name = stack.rng.choice(sorted(holders or workers))
                if kill_lease_holder(stack, conn, name, even_idle=not remaining):
                    return True
        except psycopg.Error:
            return False
        time.sleep(POLL_S)
    return False


def kill_lease_holder(
    stack: StackUnderTest, conn: psycopg.Connection[Any], name: str, *, even_idle: bool
) -> bool:
    pid = stack.up.pid(name)
    # Stopped during the check: a worker with a quarantined job that has crashed once is spared.
    if pid is None or not send_signal(pid, signal.SIGSTOP):
        return False
    try:
        leases = conn.execute(_LEASES, [f"{name}@%"]).fetchall()
        crashed = conn.execute(_CRASHED, [f"{name}@%"]).fetchone()
        if (not leases and not even_idle) or crashed is None or crashed[0]:
            return False
        stack.history.write("killed", point="a worker is killed", tokens=[row[0] for row in leases])
        return send_signal(pid, signal.SIGKILL)
    finally:
        # No effect on a killed process; one stopped by a lasting fault stays stopped.
        if pid not in stack.stopped:
            send_signal(pid, signal.SIGCONT)


def _kill(name: str) -> Callable[[StackUnderTest], bool]:
    def inject(stack: StackUnderTest) -> bool:
        pid = stack.up.pid(name)
        number = signal.SIGQUIT if name == "postgres" else signal.SIGKILL
        if pid is None or not send_signal(pid, number):
            return False
        # No lease is rescued without these two: the fault ends when they run again.
        if name in {"postgres", "reconciler"} and not wait_for(
            lambda: stack.up.pid(name) not in {None, pid}, RESTART_S
        ):
            detail = f"{name} did not run {RESTART_S:.0f} s after it was killed"
            stack.history.write("violation", detail=detail)
        return True

    return inject


def _kill_supervisor(stack: StackUnderTest) -> bool:
    stack.up.kill()
    # In production systemd, Compose or an operator restarts a supervisor; here the laboratory does.
    stack.start()
    return True


def _flush(stack: StackUnderTest) -> bool:
    try:
        with stack.administrator() as broker:
            broker.flushall()
    except (redis.RedisError, OSError):
        return False
    return True


def _forge(stack: StackUnderTest) -> bool:
    try:
        jobs = servers.random_job_ids(stack.up.superuser_url)
        with stack.administrator() as broker:
            stack.forged += messages.forge(broker, stack.rng, jobs)
    except (psycopg.Error, redis.RedisError, OSError):
        return False
    return True


def _end_sessions(stack: StackUnderTest) -> bool:
    try:
        servers.terminate_backends(stack.up.superuser_url, stack.rng, 0.5)
    except psycopg.Error:
        return False
    return True


SUPERVISOR: Final = "the supervisor is killed"
INSTANT: Final[dict[str, Callable[[StackUnderTest], bool]]] = {
    "a worker is killed": _kill_worker,
    "the dispatcher is killed": _kill("dispatcher"),
    "the reconciler is killed": _kill("reconciler"),
    SUPERVISOR: _kill_supervisor,
    "postgres restarts": _kill("postgres"),
    "the broker restarts empty": _kill("valkey"),
    "the broker is emptied": _flush,
    "messages are forged": _forge,
    "sessions are ended": _end_sessions,
}
KILLS: Final = frozenset(name for name in INSTANT if name.endswith("is killed"))


# -- lasting ---------------------------------------------------------------------------------------


def _proxied(
    name: str, mode: Mode, proxies: tuple[str, ...]
) -> Callable[[StackUnderTest, float], LastingFault]:
    def begin(stack: StackUnderTest, seconds: float) -> LastingFault:
        for proxy in proxies:
            getattr(stack, proxy).mode = mode

        def end() -> None:
            for proxy in proxies:
                # Half of the held connections are cut at the end, the others resume.
                if mode is Mode.HELD and stack.rng.random() < 0.5:
                    getattr(stack, proxy).mode = Mode.CUT
                getattr(stack, proxy).mode = Mode.OPEN

        return LastingFault(name, time.monotonic() + seconds, end)

    return begin


def _flap(name: str, proxy: str) -> Callable[[StackUnderTest, float], LastingFault]:
    def begin(stack: StackUnderTest, seconds: float) -> LastingFault:
        until = time.monotonic() + seconds
        flapping = LastingFault(
            name, until, lambda: setattr(getattr(stack, proxy), "mode", Mode.OPEN)
        )
        proxied: Any = getattr(stack, proxy)
        while time.monotonic() < until:
            proxied.mode = Mode.CUT
            time.sleep(FLAP_S)
            proxied.mode = Mode.OPEN
            time.sleep(FLAP_S)
        return flapping

    return begin


def _freeze(process: str) -> Callable[[StackUnderTest, float], LastingFault]:
    def begin(stack: StackUnderTest, seconds: float) -> LastingFault:
        name = stack.rng.choice(sorted(stack.up.workers())) if process == "worker" else process
        fault = "a worker hangs" if process == "worker" else "the broker hangs"
        pid = stack.up.pid(name)
        if pid is None or not stack.stop(pid):
            return LastingFault(fault, time.monotonic(), lambda: None)
        return LastingFault(fault, time.monotonic() + seconds, lambda: stack.resume(pid))

    return begin


def _limit_connections(stack: StackUnderTest, seconds: float) -> LastingFault:
    url = stack.up.superuser_url

    def end() -> None:
        while True:
            try:
                servers.limit_connections(url, -1)
            except psycopg.Error:
                time.sleep(0.2)
            else:
                return

    try:
        servers.limit_connections(url, 2)
        servers.terminate_backends(url, stack.rng, 0.7)
    except psycopg.Error:
        seconds = 0.0  # some roles may be limited nevertheless
    return LastingFault("connections run out", time.monotonic() + seconds, end)


def _hold_snapshot(stack: StackUnderTest, seconds: float) -> LastingFault:
    try:
        conn = servers.hold_snapshot(stack.up.superuser_url)
    except psycopg.Error:
        return LastingFault("a snapshot is held", time.monotonic(), lambda: None)
    return LastingFault("a snapshot is held", time.monotonic() + seconds, conn.close)


LASTING: Final[dict[str, Callable[[StackUnderTest, float], LastingFault]]] = {
    "the database is cut off": _proxied("the database is cut off", Mode.CUT, ("database",)),
    "the database is half open": _proxied("the database is half open", Mode.HELD, ("database",)),
    "the database flaps": _flap("the database flaps", "database"),
    "the broker is cut off": _proxied("the broker is cut off", Mode.CUT, ("broker",)),
    "the broker is half open": _proxied("the broker is half open", Mode.HELD, ("broker",)),
    "the broker flaps": _flap("the broker flaps", "broker"),
    "the network is cut": _proxied("the network is cut", Mode.CUT, ("database", "broker")),
    "the broker hangs": _freeze("valkey"),
    "a worker hangs": _freeze("worker"),
    "connections run out": _limit_connections,
    "a snapshot is held": _hold_snapshot,
}
