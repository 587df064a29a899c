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
POLL_S: Final = 0.05
"""Number and interval of attempts to kill a worker that holds a lease."""
RESTART_S: Final = 20.0
"""Longest time in which the supervisor must restart a killed process."""
_HOLDERS: Final = "SELECT DISTINCT split_part(worker, '@', 1) FROM vestry.leases"
_HELD: Final = "SELECT id::text FROM vestry.leases WHERE worker LIKE %s"
_CRASHED: Final = """SELECT EXISTS (SELECT FROM vestry.leases l JOIN vestry.jobs j ON j.lease_id = l.id
  WHERE l.worker LIKE %s AND l.exclusive AND j.crashes >= 1)"""


@dataclass(slots=True)
class Site:
    """The stack and the proxies between its parts."""

    up: LabUp
    database: Proxy
    broker: Proxy
    history: History
    rng: random.Random
    forged: int = 0
    stopped: list[int] = field(default_factory=list)
    """Processes stopped by SIGSTOP."""

    def start(self) -> None:
        """Start the supervisor."""
        self.up.start(self.database.port, self.broker.port)

    def administrator(self) -> redis.Redis:
        """A broker client with all permissions, which bypasses the proxy."""
        return servers.administrator(
            f"redis://x@127.0.0.1:{self.up.broker_port}/0", self.up.administrator_password()
        )

    def stop(self, pid: int) -> bool:
        """Send SIGSTOP; whether the process exists."""
        exists = signalled(pid, signal.SIGSTOP)
        if exists:
            self.stopped.append(pid)
        return exists

    def resume(self, pid: int) -> None:
        """Send SIGCONT, if the process still runs."""
        self.stopped.remove(pid)
        if pid in {process["pid"] for process in self.up.processes()}:
            signalled(pid, signal.SIGCONT)

    def restore(self) -> None:
        """End all lasting faults."""
        for pid in list(self.stopped):
            self.resume(pid)
        self.database.mode = self.broker.mode = Mode.OPEN
        with suppress(psycopg.Error):
            servers.limit_connections(self.up.superuser_url, -1)


def signalled(pid: int, number: signal.Signals) -> bool:
    """Send a signal; whether the process exists. The state file may still list one that has ended."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


@dataclass(slots=True)
class Lasting:
    """A fault that goes on until `end` is called."""

    name: str
    until: float
    end: Callable[[], object]


# -- instantaneous; each returns whether it could be done ------------------------------------------


def _kill_worker(site: Site) -> bool:
    """Kill a worker that holds a lease, if possible: killing an idle one loses nothing."""
    for remaining in reversed(range(ATTEMPTS)):
        try:
            with psycopg.connect(site.up.superuser_url, autocommit=True) as conn:
                workers = set(site.up.workers())
                holders = workers & {row[0] for row in conn.execute(_HOLDERS)}
                name = site.rng.choice(sorted(holders or workers))
                if _kill_holder(site, conn, name, even_idle=not remaining):
                    return True
        except psycopg.Error:
            return False
        time.sleep(POLL_S)
    return False


def _kill_holder(site: Site, conn: psycopg.Connection[Any], name: str, *, even_idle: bool) -> bool:
    pid = site.up.pid(name)
    # Stopped during the check: a quarantined job that has crashed once is spared.
    if pid is None or not signalled(pid, signal.SIGSTOP):
        return False
    try:
        leases = conn.execute(_HELD, [f"{name}@%"]).fetchall()
        crashed = conn.execute(_CRASHED, [f"{name}@%"]).fetchone()
        if (not leases and not even_idle) or crashed is None or crashed[0]:
            return False
        site.history.write("killed", point="a worker is killed", tokens=[row[0] for row in leases])
        return signalled(pid, signal.SIGKILL)
    finally:
        # No effect on a killed process; one that a lasting fault has stopped stays stopped.
        if pid not in site.stopped:
            signalled(pid, signal.SIGCONT)


def _kill(name: str) -> Callable[[Site], bool]:
    def strike(site: Site) -> bool:
        pid = site.up.pid(name)
        number = signal.SIGQUIT if name == "postgres" else signal.SIGKILL
        if pid is None or not signalled(pid, number):
            return False
        # No job is rescued without these two: the fault ends when they run again.
        if name in {"postgres", "reconciler"}:
            until = time.monotonic() + RESTART_S
            while site.up.pid(name) in {None, pid}:
                if time.monotonic() > until:
                    detail = f"{name} did not run {RESTART_S:.0f} s after it was killed"
                    site.history.write("violation", detail=detail)
                    break
                time.sleep(POLL_S)
        return True

    return strike


def _kill_supervisor(site: Site) -> bool:
    site.up.kill()
    # In production systemd, Compose or a person restarts a supervisor; here the laboratory does.
    site.start()
    return True


def _flush(site: Site) -> bool:
    try:
        with site.administrator() as broker:
            broker.flushall()
    except (redis.RedisError, OSError):
        return False
    return True


def _forge(site: Site) -> bool:
    try:
        with psycopg.connect(site.up.superuser_url, autocommit=True) as conn:
            rows = conn.execute("SELECT id::text FROM vestry.jobs ORDER BY random() LIMIT 100")
            jobs = [row[0] for row in rows]
        with site.administrator() as broker:
            site.forged += messages.forge(broker, site.rng, jobs)
    except (psycopg.Error, redis.RedisError, OSError):
        return False
    return True


def _end_sessions(site: Site) -> bool:
    try:
        servers.terminate_backends(site.up.superuser_url, site.rng, 0.5)
    except psycopg.Error:
        return False
    return True


SUPERVISOR: Final = "the supervisor is killed"
AT_ONCE: Final[dict[str, Callable[[Site], bool]]] = {
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
KILLS: Final = frozenset(name for name in AT_ONCE if name.endswith("is killed"))


# -- lasting ---------------------------------------------------------------------------------------


def _proxied(name: str, mode: Mode, proxies: tuple[str, ...]) -> Callable[[Site, float], Lasting]:
    def begin(site: Site, seconds: float) -> Lasting:
        for proxy in proxies:
            getattr(site, proxy).mode = mode

        def end() -> None:
            for proxy in proxies:
                # Half of the held connections are cut in the end, the others resume.
                if mode is Mode.HELD and site.rng.random() < 0.5:
                    getattr(site, proxy).mode = Mode.CUT
                getattr(site, proxy).mode = Mode.OPEN

        return Lasting(name, time.monotonic() + seconds, end)

    return begin


def _flap(name: str, proxy: str) -> Callable[[Site, float], Lasting]:
    def begin(site: Site, seconds: float) -> Lasting:
        over = time.monotonic() + seconds
        flapping = Lasting(name, over, lambda: setattr(getattr(site, proxy), "mode", Mode.OPEN))
        site_proxy: Any = getattr(site, proxy)
        while time.monotonic() < over:
            site_proxy.mode = Mode.CUT
            time.sleep(FLAP_S)
            site_proxy.mode = Mode.OPEN
            time.sleep(FLAP_S)
        return flapping

    return begin


def _freeze(victim: str) -> Callable[[Site, float], Lasting]:
    def begin(site: Site, seconds: float) -> Lasting:
        name = site.rng.choice(sorted(site.up.workers())) if victim == "worker" else victim
        fault = "a worker hangs" if victim == "worker" else "the broker hangs"
        pid = site.up.pid(name)
        if pid is None or not site.stop(pid):
            return Lasting(fault, time.monotonic(), lambda: None)
        return Lasting(fault, time.monotonic() + seconds, lambda: site.resume(pid))

    return begin


def _limit(site: Site, seconds: float) -> Lasting:
    url = site.up.superuser_url

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
        servers.terminate_backends(url, site.rng, 0.7)
    except psycopg.Error:
        seconds = 0.0  # some roles may be limited nevertheless
    return Lasting("connections run out", time.monotonic() + seconds, end)


def _hold(site: Site, seconds: float) -> Lasting:
    try:
        conn = servers.hold_snapshot(site.up.superuser_url)
    except psycopg.Error:
        return Lasting("a snapshot is held", time.monotonic(), lambda: None)
    return Lasting("a snapshot is held", time.monotonic() + seconds, conn.close)


LASTING: Final[dict[str, Callable[[Site, float], Lasting]]] = {
    "the database is cut off": _proxied("the database is cut off", Mode.CUT, ("database",)),
    "the database is half open": _proxied("the database is half open", Mode.HELD, ("database",)),
    "the database flaps": _flap("the database flaps", "database"),
    "the broker is cut off": _proxied("the broker is cut off", Mode.CUT, ("broker",)),
    "the broker is half open": _proxied("the broker is half open", Mode.HELD, ("broker",)),
    "the broker flaps": _flap("the broker flaps", "broker"),
    "the network is cut": _proxied("the network is cut", Mode.CUT, ("database", "broker")),
    "the broker hangs": _freeze("valkey"),
    "a worker hangs": _freeze("worker"),
    "connections run out": _limit,
    "a snapshot is held": _hold,
}
