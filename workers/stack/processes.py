"""What `vestry up` runs, and what each process is given: nothing that is not written here."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from inference.device.threads import default_threads
from models.bootstrap import (
    CLOUD_WORKER,
    CONTROL,
    OPERATOR,
    PRIVATE_WORKER,
    PRODUCER,
    SHAREABLE_WORKER,
)
from vestry.lanes import LANES, Latency, Pool, Privacy
from workers.home import CHECKOUT, Home, write_private
from workers.model_servers import plan
from workers.model_servers.plan import LlamaServer, ModelServers
from workers.stack import accounts
from workers.stack.accounts import Accounts
from workers.stack.keyring_handoff import KeyringPipe
from workers.stack.postgres import PostgresServer
from workers.stack.process import Account, Command, base_environment
from workers.stack.process_dir import ProcessDir
from workers.stack.settings import OFFLINE, inherited_environment, required_paths
from workers.stack.supervisor import ProcessSpec, Stage, http_ready, ready_file
from workers.stack.valkey import CLOUD, ValkeyServer

BULK_NICE = 19
FLOWER_USER = "vestry"
CLOUD_LANES = tuple(name for name, lane in LANES.items() if lane.pool is Pool.CLOUD)
"""One worker serves them all: it waits for others' machines."""
WORKER_ROLES = {Privacy.PRIVATE: PRIVATE_WORKER, Privacy.SHAREABLE: SHAREABLE_WORKER}


@dataclass(frozen=True, slots=True)
class StackOptions:
    """How the stack is to be run.

    Attributes:
        settings: `VESTRY_*` settings for every child, over those of the environment.
        flower: whether to run Flower.
        only: names of the processes to run besides the servers; empty means all.
    """

    settings: Mapping[str, str] = field(default_factory=dict)
    flower: bool = True
    only: tuple[str, ...] = ()


class EmbeddedStack:
    """The processes of one stack.

    Args:
        home: created and locked.
        options: how it is to be run.
    """

    def __init__(self, home: Home, options: StackOptions) -> None:
        self.home = home
        self.options = options
        self.postgres = PostgresServer(home)
        self.valkey = ValkeyServer(home)
        self.keys = KeyringPipe(home.keyring, home.run)
        for privacy in Privacy:
            home.settle_port(f"flower.{privacy}")
        given = self._given()
        self.accounts = Accounts(home, given.get(accounts.SETTING, "auto"), required_paths(given))
        self._lanes = worker_lanes(has_accelerator(self._settings()))
        workers = {worker_name(lanes): lanes for lanes in self._lanes}
        self.models = ModelServers(home, given, workers, self._wanted)
        if self.models.clouds:
            self._lanes.append(CLOUD_LANES)

    def specs(self) -> list[ProcessSpec]:
        """Every process.

        Raises:
            ValueError: `only` names one that does not exist.
        """
        chosen = [
            self._control("dispatcher"),
            self._control("reconciler"),
            *(self._llama(server) for server in self.models.llama),
            *(self._worker(lanes) for lanes in self._lanes),
        ]
        if self.options.flower:
            chosen += [self._flower(privacy) for privacy in Privacy]
        if unknown := set(self.options.only) - {spec.name for spec in chosen}:
            raise ValueError(
                f"no such process: {', '.join(sorted(unknown))}; "
                f"there are {', '.join(spec.name for spec in chosen)}"
            )
        return [
            *self._servers(),
            *(spec for spec in chosen if self._wanted(spec.name)),
        ]

    def write_client_file(self) -> None:
        """Write what a client on this machine needs; removed again when the stack ends."""
        write_private(self.home.client, json.dumps(self.client_document(), indent=1) + "\n")

    def client_document(self) -> dict[str, Any]:
        """The client file's content; it holds the producer's password."""
        flower = {
            privacy.value: {
                "url": self._flower_url(privacy),
                "user": FLOWER_USER,
                "password_file": str(self.home.password_file(f"flower.{privacy}")),
            }
            for privacy in Privacy
        }
        return {
            "database_url": self.postgres.url(PRODUCER),
            "operator_url": self.postgres.url(OPERATOR),
            "keyring": str(self.home.keyring) if self.keys.in_file else None,
            "flower": flower if self.options.flower else {},
            "models": {"notes": self.models.notes, **self.models.document()},
            "supervisor_pid": os.getpid(),
        }

    def _servers(self) -> list[ProcessSpec]:
        return [
            ProcessSpec(
                name=name,
                stage=stage,
                prepare=server.prepare,
                ready=server.ready,
                address=server.address,
            )
            for name, stage, server in (
                ("postgres", Stage.DATABASE, self.postgres),
                ("valkey", Stage.BROKER, self.valkey),
            )
        ]

    def _control(self, name: str) -> ProcessSpec:
        secrets = self._database(CONTROL)
        if name == "dispatcher":
            secrets |= self._broker("dispatcher") | self.models.overview()
        return self._python(name, Stage.CONTROL, f"workers.{name}", secrets, role="control")

    def _worker(self, lanes: Sequence[str]) -> ProcessSpec:
        privacy, clouds = LANES[lanes[0]].privacy, lanes == CLOUD_LANES
        environment = {
            "VESTRY_PRIVACY": privacy.value,
            "VESTRY_LANES": ",".join(lanes),
            **self._database(CLOUD_WORKER if clouds else WORKER_ROLES[privacy]),
            **self._broker(CLOUD if clouds else privacy.value),
            **self.models.environment(lanes),
        }
        return self._python(
            worker_name(lanes),
            Stage.WORKERS,
            "workers.worker",
            environment,
            role=CLOUD if clouds else privacy.value,
            lanes=tuple(lanes),
            nice=BULK_NICE if bulk_only(lanes) else 0,
            keyring=privacy is Privacy.PRIVATE,
        )

    def _llama(self, server: LlamaServer) -> ProcessSpec:
        """A llama.cpp server: no login, no key ring, and none of the workers' settings.

        One core is left to others: its threads wait for each other by spinning, and where one of them
        does not get a core all stand still (two busy cores, two threads: 0.6 tokens a second instead
        of 50; one thread: half of what it does alone).
        """
        account = self.accounts.account_of("models")
        room = ProcessDir(self.home, server.name, account)

        def prepare() -> Command:
            room.prepare()
            return Command(
                argv=[sys.executable, "-m", "workers.llama_server"],
                log=self.home.logs / f"{server.name}.log",
                environment=room.copy_secrets(
                    {
                        **base_environment(),
                        **OFFLINE,
                        "VESTRY_LLAMA_THREADS": str(max(1, default_threads() - 1)),
                        **self.models.llama_environment(server),
                    }
                ),
                account=account,
                cwd=CHECKOUT,
                nice=BULK_NICE if bulk_only(server.lanes) else 0,
            )

        return ProcessSpec(
            server.name,
            Stage.CONTROL,
            prepare,
            http_ready(lambda: f"{server.address}/health"),
            address=lambda: server.address,
        )

    def _python(
        self,
        name: str,
        stage: Stage,
        module: str,
        environment: Mapping[str, str],
        *,
        role: str,
        lanes: tuple[str, ...] = (),
        nice: int = 0,
        keyring: bool = False,
    ) -> ProcessSpec:
        account = self.accounts.account_of(role)
        room = ProcessDir(self.home, name, account)

        def prepare() -> Command:
            room.prepare()
            given = {**environment, "VESTRY_READY_FILE": str(room.ready)}
            handed = (self.keys.descriptor(),) if keyring else ()
            for descriptor in handed:
                given["VESTRY_KEYRING_FD"] = str(descriptor)
            argv = [sys.executable, "-m", module]
            command = self._command(name, argv, given, account, room)
            return replace(command, nice=nice, pass_fds=handed)

        return ProcessSpec(name, stage, prepare, ready_file(room.ready), lanes=lanes)

    def _flower(self, privacy: Privacy) -> ProcessSpec:
        name = f"flower-{privacy}"
        account = self.accounts.account_of(name)
        room = ProcessDir(self.home, name, account)

        def prepare() -> Command:
            room.prepare()
            port = self.home.port(f"flower.{privacy}")
            password = self.home.password(f"flower.{privacy}")
            # A file: Flower would take the password as an argument too, for everybody to see.
            conf = room.write(
                "flower.py",
                f"basic_auth = [{FLOWER_USER + ':' + password!r}]\n"
                f"address = '127.0.0.1'\nport = {port}\n"
                "read_only = True\npersistent = False\n",
            )
            argv = [sys.executable, "-m", "celery", "-A", "workers.app", "flower", f"--conf={conf}"]
            environment = {"VESTRY_PRIVACY": privacy.value, **self._broker(privacy.value)}
            return self._command(name, argv, environment, account, room)

        return ProcessSpec(
            name,
            Stage.CONTROL,
            prepare,
            http_ready(lambda: f"{self._flower_url(privacy)}/healthcheck"),
            address=lambda: self._flower_url(privacy),
        )

    def _flower_url(self, privacy: Privacy) -> str:
        return f"http://127.0.0.1:{self.home.port(f'flower.{privacy}')}"

    def _command(
        self,
        name: str,
        argv: Sequence[str],
        environment: Mapping[str, str],
        account: Account,
        room: ProcessDir,
    ) -> Command:
        given = {**base_environment(), **OFFLINE, **environment, **self._settings()}
        return Command(
            argv=argv,
            log=self.home.logs / f"{name}.log",
            environment=room.copy_secrets(given),
            account=account,
            cwd=CHECKOUT,
        )

    def _settings(self) -> dict[str, str]:
        """What every process of ours is told."""
        own = (*plan.SETTINGS, accounts.SETTING)
        return {name: value for name, value in self._given().items() if name not in own}

    def _given(self) -> dict[str, str]:
        return {**inherited_environment(), **self.options.settings}

    def _wanted(self, name: str) -> bool:
        return not self.options.only or name in self.options.only

    def _database(self, role: str) -> dict[str, str]:
        return {
            "VESTRY_DATABASE_URL": self.postgres.url_without_password(role),
            "VESTRY_DATABASE_PASSWORD_FILE": str(self.postgres.password_file(role)),
        }

    def _broker(self, user: str) -> dict[str, str]:
        return {
            "VESTRY_BROKER_URL": self.valkey.url_without_password(user),
            "VESTRY_BROKER_PASSWORD_FILE": str(self.valkey.password_file(user)),
        }


def worker_lanes(accelerator: bool) -> list[tuple[str, ...]]:
    """The lanes of each worker for inference and for OCR.

    On an accelerator one inference process serves both latencies of its class: two would hold the
    model twice and compete for the device. On a CPU, and for OCR, bulk is a process of its own at the
    lowest priority: interactive p95 beside it was 34 ms, against 273 ms at equal priority.
    """
    pairs: list[tuple[str, ...]] = [
        (f"{privacy}.interactive.gpu", f"{privacy}.bulk.gpu") for privacy in Privacy
    ]
    inference: list[tuple[str, ...]] = (
        pairs if accelerator else [(lane,) for pair in pairs for lane in pair]
    )
    return inference + [(name,) for name, lane in LANES.items() if lane.pool is Pool.CPU]


def worker_name(lanes: Sequence[str]) -> str:
    """A worker's name; latencies are named where it serves one of them only."""
    lane = LANES[lanes[0]]
    return lane.name.replace(".", "-") if len(lanes) == 1 else f"{lane.privacy}-{lane.pool}"


def bulk_only(lanes: Iterable[str]) -> bool:
    """Whether nobody waits for what a process does."""
    return all(LANES[lane].latency is Latency.BULK for lane in lanes)


def has_accelerator(settings: Mapping[str, str]) -> bool:
    """Whether inference will run on a device other than the CPU; told without importing torch."""
    device = settings.get("VESTRY_DEVICE", "auto")
    if device != "auto":
        return device != "cpu"
    if sys.platform == "darwin":
        return os.uname().machine == "arm64"
    return any(Path(node).exists() for node in ("/dev/nvidia0", "/dev/kfd"))
