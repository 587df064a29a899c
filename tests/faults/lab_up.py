"""`vestry up` as the laboratory runs it: its children reach Postgres and Valkey through proxies.

`python -m tests.faults.lab_up up …` is the supervisor, with everything else of its own; `LabUp` starts,
kills and starts it again from outside, as systemd or Compose would.
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
from workers.stack import background, processes
from workers.stack import commands as up
from workers.stack.postgres import PORT_NAME as POSTGRES
from workers.stack.postgres import SUPERUSER, PostgresServer
from workers.stack.process import Identity, base_environment, open_log
from workers.stack.valkey import PORT_NAME as VALKEY

DATABASE_PORT: Final = "LABORATORY_DATABASE_PORT"
BROKER_PORT: Final = "LABORATORY_BROKER_PORT"
GONE_S: Final = 15.0
"""In which nothing of a killed supervisor's may be left."""


class ProxiedStack(processes.EmbeddedStack):
    """The stack, whose processes are told the proxies' ports."""

    def _database(self, role: str) -> dict[str, str]:
        told = super()._database(role)
        return _through(told, "VESTRY_DATABASE_URL", self.postgres.port, DATABASE_PORT)

    def _broker(self, user: str) -> dict[str, str]:
        told = super()._broker(user)
        return _through(told, "VESTRY_BROKER_URL", self.valkey.port, BROKER_PORT)


def _through(told: dict[str, str], name: str, port: int, proxy: str) -> dict[str, str]:
    return told | {name: told[name].replace(f":{port}/", f":{os.environ[proxy]}/")}


class LabUp:
    """The supervisor's process, from outside.

    Args:
        path: its home.
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
        """Start it, and return once everything is ready."""
        argv = [sys.executable, "-m", "tests.faults.lab_up", "up", "--home", str(self.home.path)]
        argv += ["--no-flower", "--timeout", "120"]
        argv += [part for pair in self._settings.items() for part in ("--set", "=".join(pair))]
        told = {DATABASE_PORT: str(database_proxy), BROKER_PORT: str(broker_proxy)}
        with open_log(self.home.logs / "supervisor.log") as log:
            self._process = subprocess.Popen(
                argv,
                env=base_environment() | told,
                cwd=CHECKOUT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        background._await_ready(self._process, self.home)
        # The proxies lead to the ports that were free before; a server that found its taken has moved.
        ports = self.home.port(POSTGRES), self.home.port(VALKEY)
        assert ports == (self.postgres_port, self.broker_port), "a server's port was taken"

    def kill(self) -> None:
        """SIGKILL to the supervisor alone; returns once nothing of it is left."""
        assert self._process is not None
        left = [Identity(**p["identity"]) for p in self.processes() if p["identity"]]
        self._process.kill()
        self._process.wait()
        until = time.monotonic() + GONE_S
        while any(identity.alive() for identity in left):
            assert time.monotonic() < until, "a killed supervisor's processes live on"
            time.sleep(0.05)

    def stop(self) -> None:
        """End everything in order."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(150)
        background.sweep(self.home.path)

    def processes(self) -> list[dict[str, Any]]:
        """The children, as the supervisor's state file has them."""
        return list(read_json(self.home.state).get("processes", ()))

    def pids(self) -> dict[str, Any]:
        """Every child by name, the guardian too; None for one that does not run now."""
        state = read_json(self.home.state)
        children = {process["name"]: process["pid"] for process in state["processes"]}
        return children | {"guardian": state["keeper"]}

    def child_pids(self) -> set[int]:
        """The supervisor's children, as the system has them."""
        assert self._process is not None
        return {child.pid for child in psutil.Process(self._process.pid).children()}

    def all_ready(self) -> bool:
        """Whether every child is."""
        found = self.processes()
        return bool(found) and all(process["state"] == "ready" for process in found)

    def pid(self, name: str) -> int | None:
        """A child's process now; None while there is none."""
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
        """What clients need."""
        return read_json(self.home.client)

    @property
    def superuser_url(self) -> str:
        """Past the proxy."""
        return PostgresServer(self.home).url(SUPERUSER)

    def administrator_password(self) -> str:
        """Of the broker's laboratory user."""
        return self.home.password(f"valkey.{ADMINISTRATOR}")


def main() -> int:
    """The supervisor, with proxied children and a broker that the laboratory may flush."""
    processes.ValkeyServer = OpenValkey  # type: ignore[misc]
    up.EmbeddedStack = ProxiedStack  # type: ignore[misc]
    return up.main()


if __name__ == "__main__":
    sys.exit(main())
