"""`vestry up` for the laboratory: its children reach Postgres and Valkey through proxies.

`python -m tests.faults.lab_up up …` is the supervisor; `LabUp` starts, kills and restarts it from
another process, as systemd or Compose would.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import psutil

from tests.faults.servers import ADMINISTRATOR, OpenValkey
from workers.home import CHECKOUT, Home, read_json
from workers.stack import background, embedded_stack
from workers.stack import commands as up
from workers.stack.postgres import PORT_NAME as POSTGRES
from workers.stack.postgres import SUPERUSER, PostgresServer
from workers.stack.process import Identity, base_environment, open_log
from workers.stack.valkey import PORT_NAME as VALKEY

DATABASE_PORT: Final = "LABORATORY_DATABASE_PORT"
BROKER_PORT: Final = "LABORATORY_BROKER_PORT"
ORPHANS_S: Final = 15.0
"""Within this time after the supervisor was killed all of its processes have ended."""


class ProxiedStack(embedded_stack.EmbeddedStack):
    """The stack with the proxies' ports for its processes."""

    def _database(self, role: str) -> dict[str, str]:
        environment = super()._database(role)
        return _through(environment, "VESTRY_DATABASE_URL", self.postgres.port, DATABASE_PORT)

    def _broker(self, user: str) -> dict[str, str]:
        environment = super()._broker(user)
        return _through(environment, "VESTRY_BROKER_URL", self.valkey.port, BROKER_PORT)


def _through(environment: dict[str, str], name: str, port: int, proxy: str) -> dict[str, str]:
    return environment | {name: environment[name].replace(f":{port}/", f":{os.environ[proxy]}/")}


class LabUp:
    """Controls the supervisor's process.

    Args:
        path: the stack's home.
        settings: of every child.
    """

    def __init__(self, path: Path, settings: Mapping[str, str]) -> None:
        self.home = Home(path)
        self.home.create()
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self.postgres_port = self.home.port(POSTGRES)
        self.broker_port = self.home.port(VALKEY)

    def start(self, database_proxy: int, broker_proxy: int) -> None:
        """Start the stack; return once every process is ready."""
        argv = [sys.executable, "-m", "tests.faults.lab_up", "up", "--home", str(self.home.path)]
        argv += ["--no-flower", "--timeout", "120"]
        argv += [part for pair in self._settings.items() for part in ("--set", "=".join(pair))]
        ports = {DATABASE_PORT: str(database_proxy), BROKER_PORT: str(broker_proxy)}
        with open_log(self.home.logs / "supervisor.log") as log:
            self._process = subprocess.Popen(
                argv,
                env=base_environment() | ports,
                cwd=CHECKOUT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        background._await_ready(self._process, self.home)
        # The proxies forward to the ports chosen before; a server whose port was taken uses another.
        chosen = self.home.port(POSTGRES), self.home.port(VALKEY)
        assert chosen == (self.postgres_port, self.broker_port), "a server's port was taken"

    def kill(self) -> None:
        """Kill the supervisor only; return once all of its processes have ended."""
        assert self._process is not None
        children = [Identity(**p["identity"]) for p in self.processes() if p["identity"]]
        self._process.kill()
        self._process.wait()
        until = time.monotonic() + ORPHANS_S
        while any(identity.alive() for identity in children):
            assert time.monotonic() < until, "processes of a killed supervisor still run"
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop the stack in order."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(150)
        background.sweep(self.home.path)

    def processes(self) -> list[dict[str, Any]]:
        """The children, from the supervisor's state file."""
        return list(read_json(self.home.state).get("processes", ()))

    def pids(self) -> dict[str, Any]:
        """Child to process id, guardian included; None for one that does not run."""
        state = read_json(self.home.state)
        children = {process["name"]: process["pid"] for process in state["processes"]}
        return children | {"guardian": state["guardian"]}

    def child_pids(self) -> set[int]:
        """The supervisor's child processes, from the operating system."""
        assert self._process is not None
        return {child.pid for child in psutil.Process(self._process.pid).children()}

    def all_ready(self) -> bool:
        """Whether every child is ready."""
        processes = self.processes()
        return bool(processes) and all(process["state"] == "ready" for process in processes)

    def pid(self, name: str) -> int | None:
        """A ready child's process id; None while it is not ready."""
        for process in self.processes():
            if process["name"] == name and process["state"] == "ready":
                pid: int | None = process["pid"]
                return pid
        return None

    def workers(self) -> list[str]:
        """Names of the children that serve lanes."""
        return [process["name"] for process in self.processes() if process["lanes"]]

    @property
    def client(self) -> dict[str, Any]:
        """The client file."""
        return read_json(self.home.client)

    @property
    def superuser_url(self) -> str:
        """The superuser's login, which bypasses the proxy."""
        return PostgresServer(self.home).url(SUPERUSER)

    def administrator_password(self) -> str:
        """The password of the broker's laboratory user."""
        return self.home.password(f"valkey.{ADMINISTRATOR}")


def main() -> int:
    """Run the supervisor, with proxied children and a broker that the laboratory may flush."""
    embedded_stack.ValkeyServer = OpenValkey  # type: ignore[misc]
    up.EmbeddedStack = ProxiedStack  # type: ignore[misc]
    return up.main()


if __name__ == "__main__":
    sys.exit(main())
