"""The network laboratory: workers in a network namespace whose packets are dropped.

A proxy can only stop forwarding; here no packet is acknowledged, as with an unplugged cable. Only root
can create a namespace; without one the laboratory adds a note and does nothing.
"""

from __future__ import annotations

import random
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import psycopg

from models.bootstrap import CONTROL, PRIVATE_WORKER, SHAREABLE_WORKER
from tests.faults.checker import check
from tests.faults.ledger import History, install
from tests.faults.producers import Order, Producer
from tests.faults.proxy import Proxy
from tests.faults.real import PROGRESS_S, SETTINGS
from tests.faults.report import Report
from tests.faults.servers import LabStack
from vestry import Vestry
from workers.home import CHECKOUT
from workers.stack.process import base_environment, open_log

HOST_ADDRESS: Final = "10.213.7.1"
WORKER_ADDRESS: Final = "10.213.7.2"
DROP_ALL: Final = ("tbf", "rate", "8bit", "burst", "1", "limit", "1")
"""Queueing discipline that drops every packet."""
OUTAGE_S: Final = (1.0, 6.0)
"""Range of durations: some shorter than a lease, some longer."""
ROLES: Final = {"private": PRIVATE_WORKER, "shareable": SHAREABLE_WORKER}


@dataclass(frozen=True, slots=True)
class Scale:
    """Number and rate of jobs, and number of outages."""

    jobs: int
    jobs_per_s: float
    outages: int


class Namespace:
    """A network namespace, connected to this one by a veth pair."""

    def __init__(self) -> None:
        self.name = f"vestry-{secrets.token_hex(3)}"
        self._host_link, self._worker_link = (
            f"vl{secrets.token_hex(3)}",
            f"vr{secrets.token_hex(3)}",
        )

    def create(self) -> bool:
        """Create it; False if that is not possible."""
        inside = ("ip", "netns", "exec", self.name, "ip")
        steps: tuple[tuple[str, ...], ...] = (
            ("ip", "netns", "add", self.name),
            (
                "ip",
                "link",
                "add",
                self._host_link,
                "type",
                "veth",
                "peer",
                "name",
                self._worker_link,
            ),
            ("ip", "link", "set", self._worker_link, "netns", self.name),
            ("ip", "addr", "add", f"{HOST_ADDRESS}/30", "dev", self._host_link),
            ("ip", "link", "set", self._host_link, "up"),
            (*inside, "addr", "add", f"{WORKER_ADDRESS}/30", "dev", self._worker_link),
            (*inside, "link", "set", self._worker_link, "up"),
            (*inside, "link", "set", "lo", "up"),
        )
        try:
            created = all(_run(step) for step in steps)
        except OSError:
            return False
        # Dropping packets must also be possible.
        possible = (
            created and self.set_dropping(dropping=True) and self.set_dropping(dropping=False)
        )
        if not possible:
            self.remove()
        return possible

    def set_dropping(self, *, dropping: bool) -> bool:
        """Drop every packet in both directions, or forward them again."""
        verb, discipline = ("add", DROP_ALL) if dropping else ("del", ())
        inside = ("ip", "netns", "exec", self.name)
        return _run(("tc", "qdisc", verb, "dev", self._host_link, "root", *discipline)) and _run(
            (*inside, "tc", "qdisc", verb, "dev", self._worker_link, "root", *discipline)
        )

    def remove(self) -> None:
        """Delete it."""
        _run(("ip", "link", "del", self._host_link))
        _run(("ip", "netns", "del", self.name))


def _run(argv: tuple[str, ...]) -> bool:
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


class Laboratory:
    """One run.

    Args:
        stack: its servers, running.
        seed: of all choices.
        scale: numbers of jobs and faults.
    """

    def __init__(self, stack: LabStack, seed: int, scale: Scale) -> None:
        self._stack = stack
        self._seed = seed
        self._scale = scale
        self._rng = random.Random(seed)
        self.report = Report("network", seed)
        self._history = History(stack.home / "history.jsonl")
        self._stop_file = stack.home / "stop"
        self._commands: dict[str, tuple[list[str], dict[str, str]]] = {}
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def run(self) -> Report:
        """Enqueue while the network drops all packets at intervals; then check."""
        namespace = Namespace()
        if not namespace.create():
            self.report.notes.append("network namespaces are not available here")
            return self.report
        began = time.monotonic()
        install(self._stack.superuser_url)
        try:
            with ExitStack() as stack:
                database = stack.enter_context(Proxy(self._stack.postgres.port, HOST_ADDRESS))
                broker = stack.enter_context(Proxy(self._stack.valkey.port, HOST_ADDRESS))
                self._set_commands(namespace, database.port, broker.port)
                stack.enter_context(self._processes())
                self._inject(namespace)
        finally:
            namespace.remove()
        lines = list(self._history.read())
        log = self._stack.postgres.log
        self.report.add_verdict(check(self._stack.superuser_url, lines, log), lines)
        self.report.seconds = time.monotonic() - began
        return self.report

    def _set_commands(self, namespace: Namespace, database: int, broker: int) -> None:
        control = base_environment() | SETTINGS
        control["VESTRY_DATABASE_URL"] = self._stack.database_url(CONTROL)
        control["VESTRY_BROKER_URL"] = self._stack.broker_url("dispatcher")
        for name in ("reconciler", "dispatcher"):
            self._commands[name] = ([sys.executable, "-m", f"workers.{name}"], control)
        inside = ["ip", "netns", "exec", namespace.name]
        for privacy, role in ROLES.items():
            url = self._stack.database_url(role)
            variables = base_environment() | SETTINGS
            variables |= {
                "VESTRY_PRIVACY": privacy,
                "VESTRY_LANES": f"{privacy}.interactive.gpu,{privacy}.bulk.gpu",
                "VESTRY_KEYRING_FILE": str(self._stack.keyring),
                "VESTRY_DATABASE_URL": _through_proxy(url, self._stack.postgres.port, database),
                "VESTRY_BROKER_URL": _through_proxy(
                    self._stack.broker_url(privacy), self._stack.valkey.port, broker
                ),
            }
            if privacy != "private":
                del variables["VESTRY_KEYRING_FILE"]
            argv = [*inside, sys.executable, "-m", "workers.worker"]
            self._commands[privacy] = (argv, variables)

    @contextmanager
    def _processes(self) -> Iterator[None]:
        """Run all processes; restart those that end."""
        self._supervise()
        try:
            yield
        finally:
            for process in self._running.values():
                process.kill()
                process.wait()

    def _supervise(self) -> None:
        for name, (argv, environment) in self._commands.items():
            process = self._running.get(name)
            if process is not None and process.poll() is None:
                continue
            self.report.deaths += process is not None
            with open_log(self._stack.home / "logs" / f"{name}.log") as log:
                self._running[name] = subprocess.Popen(
                    argv, env=environment, cwd=CHECKOUT, stdin=subprocess.DEVNULL, stdout=log,
                    stderr=subprocess.STDOUT,
                )  # fmt: skip

    def _inject(self, namespace: Namespace) -> None:
        producer = threading.Thread(target=self._produce)
        producer.start()
        remaining = self._scale.outages
        pause_s = self._scale.jobs / self._scale.jobs_per_s / (remaining + 1)
        try:
            while remaining:
                self._wait(pause_s)
                self._history.write("fault", name="the network is silent")
                assert namespace.set_dropping(dropping=True)
                self._wait(self._rng.uniform(*OUTAGE_S))
                assert namespace.set_dropping(dropping=False)
                self._history.write("fault over", name="the network is silent")
                self.report.faults["the network is silent"] += 1
                remaining -= 1
        finally:
            self._stop_file.touch()
        producer.join()
        until = time.monotonic() + 2 * PROGRESS_S
        while not self._all_ended() and time.monotonic() < until:
            self._wait(0.2)

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._supervise()
            time.sleep(0.05)

    def _produce(self) -> None:
        url = self._stack.database_url()
        order = Order(
            self._seed * 1000 + 900, self._scale.jobs, self._scale.jobs_per_s, {}, self._stop_file
        )
        with Vestry(url, self._stack.keyring) as vestry:
            Producer(vestry, url, self._history, order).run()

    def _all_ended(self) -> bool:
        with psycopg.connect(self._stack.superuser_url, autocommit=True) as conn:
            row: Any = conn.execute(
                "SELECT NOT EXISTS (SELECT FROM vestry.jobs WHERE finished_at IS NULL)"
            ).fetchone()
        return bool(row[0])


def _through_proxy(url: str, port: int, proxy: int) -> str:
    return url.replace(f"127.0.0.1:{port}", f"{HOST_ADDRESS}:{proxy}")
