"""The processes of `vestry up`: command, account and environment of each."""

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
"""All served by one worker, which mostly waits."""
WORKER_ROLES = {Privacy.PRIVATE: PRIVATE_WORKER, Privacy.SHAREABLE: SHAREABLE_WORKER}


@dataclass(frozen=True, slots=True)
class StackOptions:
    """Options of a stack.

    Attributes:
        settings: `VESTRY_*` settings of every process; they override those of the environment.
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
        options: of the stack.
    """

    def __init__(self, home: Home, options: StackOptions) -> None:
        self.home = home
        self.options = options
        self.postgres = PostgresServer(home)
        self.valkey = ValkeyServer(home)
        self.keys = KeyringPipe(home.keyring, home.run)
        for privacy in Privacy:
            home.settle_port(f"flower.{privacy}")
        settings = self._stack_settings()
        isolation = settings.get(accounts.SETTING, "auto")
        self.accounts = Accounts(home, isolation, required_paths(settings))
        self._lanes = worker_lanes(has_accelerator(self._settings()))
        workers = {worker_name(lanes): lanes for lanes in self._lanes}
        self.models = ModelServers(home, settings, workers, self._wanted)
        if self.models.clouds:
            self._lanes.append(CLOUD_LANES)

    def specs(self) -> list[ProcessSpec]:
        """Specifications of all processes to run.

        Raises:
            ValueError: `only` names a process that does not exist.
        """
        specs = [
            self._control("dispatcher"),
            self._control("reconciler"),
            *(self._llama(server) for server in self.models.llama),
            *(self._worker(lanes) for lanes in self._lanes),
        ]
        if self.options.flower:
            specs += [self._flower(privacy) for privacy in Privacy]
        if unknown := set(self.options.only) - {spec.name for spec in specs}:
            raise ValueError(
                f"no such process: {', '.join(sorted(unknown))}; "
                f"there are {', '.join(spec.name for spec in specs)}"
            )
        return [
            *self._servers(),
            *(spec for spec in specs if self._wanted(spec.name)),
        ]

    def write_client_file(self) -> None:
        """Write the logins for clients on this machine; the file is removed when the stack ends."""
        write_private(self.home.client, json.dumps(self.client_document(), indent=1) + "\n")

    def client_document(self) -> dict[str, Any]:
        """Content of the client file, the producer's password included."""
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
        privacy, is_cloud = LANES[lanes[0]].privacy, lanes == CLOUD_LANES
        environment = {
            "VESTRY_PRIVACY": privacy.value,
            "VESTRY_LANES": ",".join(lanes),
            **self._database(CLOUD_WORKER if is_cloud else WORKER_ROLES[privacy]),
            **self._broker(CLOUD if is_cloud else privacy.value),
            **self.models.environment(lanes),
        }
        return self._python(
            worker_name(lanes),
            Stage.WORKERS,
            "workers.worker",
            environment,
            role=CLOUD if is_cloud else privacy.value,
            lanes=tuple(lanes),
            nice=BULK_NICE if bulk_only(lanes) else 0,
            keyring=privacy is Privacy.PRIVATE,
        )

    def _llama(self, server: LlamaServer) -> ProcessSpec:
        """A llama.cpp server: without logins, key ring and the workers' settings.

        It leaves one core free: its threads spin while they wait for each other, so that all are
        blocked if one of them gets no core (two busy cores, two threads: 0.6 tokens per second instead
        of 50; one thread: half of its speed on idle cores).
        """
        account = self.accounts.account_of("models")
        directory = ProcessDir(self.home, server.name, account)

        def prepare() -> Command:
            directory.prepare()
            return Command(
                argv=[sys.executable, "-m", "workers.llama_server"],
                log=self.home.logs / f"{server.name}.log",
                environment=directory.copy_secrets(
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
        directory = ProcessDir(self.home, name, account)

        def prepare() -> Command:
            directory.prepare()
            variables = {**environment, "VESTRY_READY_FILE": str(directory.ready)}
            descriptors = (self.keys.descriptor(),) if keyring else ()
            for descriptor in descriptors:
                variables["VESTRY_KEYRING_FD"] = str(descriptor)
            argv = [sys.executable, "-m", module]
            command = self._command(name, argv, variables, account, directory)
            return replace(command, nice=nice, pass_fds=descriptors)

        return ProcessSpec(name, stage, prepare, ready_file(directory.ready), lanes=lanes)

    def _flower(self, privacy: Privacy) -> ProcessSpec:
        name = f"flower-{privacy}"
        account = self.accounts.account_of(name)
        directory = ProcessDir(self.home, name, account)

        def prepare() -> Command:
            directory.prepare()
            port = self.home.port(f"flower.{privacy}")
            password = self.home.password(f"flower.{privacy}")
            # In a file: as an argument, the password would be visible to every account.
            conf = directory.write(
                "flower.py",
                f"basic_auth = [{FLOWER_USER + ':' + password!r}]\n"
                f"address = '127.0.0.1'\nport = {port}\n"
                "read_only = True\npersistent = False\n",
            )
            argv = [sys.executable, "-m", "celery", "-A", "workers.app", "flower", f"--conf={conf}"]
            environment = {"VESTRY_PRIVACY": privacy.value, **self._broker(privacy.value)}
            return self._command(name, argv, environment, account, directory)

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
        directory: ProcessDir,
    ) -> Command:
        variables = {**base_environment(), **OFFLINE, **environment, **self._settings()}
        return Command(
            argv=argv,
            log=self.home.logs / f"{name}.log",
            environment=directory.copy_secrets(variables),
            account=account,
            cwd=CHECKOUT,
        )

    def _settings(self) -> dict[str, str]:
        """Settings of every process."""
        own = (*plan.SETTINGS, accounts.SETTING)
        return {name: value for name, value in self._stack_settings().items() if name not in own}

    def _stack_settings(self) -> dict[str, str]:
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

    With an accelerator, one inference process serves both latencies of its class: two would load the
    model twice and compete for the device. On a CPU, and for OCR, bulk lanes have their own process at
    the lowest priority: interactive p95 beside it was 34 ms, against 273 ms at equal priority.
    """
    pairs: list[tuple[str, ...]] = [
        (f"{privacy}.interactive.gpu", f"{privacy}.bulk.gpu") for privacy in Privacy
    ]
    inference: list[tuple[str, ...]] = (
        pairs if accelerator else [(lane,) for pair in pairs for lane in pair]
    )
    return inference + [(name,) for name, lane in LANES.items() if lane.pool is Pool.CPU]


def worker_name(lanes: Sequence[str]) -> str:
    """A worker's name; it includes the latency if the worker serves one lane."""
    lane = LANES[lanes[0]]
    return lane.name.replace(".", "-") if len(lanes) == 1 else f"{lane.privacy}-{lane.pool}"


def bulk_only(lanes: Iterable[str]) -> bool:
    """Whether a process serves no interactive lane."""
    return all(LANES[lane].latency is Latency.BULK for lane in lanes)


def has_accelerator(settings: Mapping[str, str]) -> bool:
    """Whether inference runs on another device than the CPU; determined without importing torch."""
    device = settings.get("VESTRY_DEVICE", "auto")
    if device != "auto":
        return device != "cpu"
    if sys.platform == "darwin":
        return os.uname().machine == "arm64"
    return any(Path(node).exists() for node in ("/dev/nvidia0", "/dev/kfd"))
