"""The commands of compose.yaml's services run, with the secrets created for them."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from models.bootstrap import ROLES
from tests.temp_stack_dir import temporary_home
from tests.waiting import eventually
from vestry import Embedding, Vestry
from workers.home import Home, write_private
from workers.stack import compose_secrets
from workers.stack.dev_stack import DevStack
from workers.stack.process import base_environment
from workers.stack.valkey import USERS

ROOT = Path(__file__).resolve().parents[2]
SERVICES = (
    "dispatcher", "reconciler", "port-forwarder", "private-bulk-gpu", "private-cpu",
    "shareable-bulk-gpu", "cloud", "llama-private", "flower-private",
)  # fmt: skip
"""One of each kind; the others have other lanes or another privacy class."""
HEALTHY_WITHIN_S = 120.0


@dataclass
class Site:
    """Addresses and paths on this machine in place of those in containers."""

    stack: DevStack
    secrets: Path
    directory: Path
    compose: dict[str, Any]

    def localized(self, service: str, text: str) -> str:
        """A text of compose.yaml with addresses and paths of this machine."""
        files = {name: s["file"].rpartition("/")[2] for name, s in self.compose["secrets"].items()}
        text = text.replace("@postgres/", f"@127.0.0.1:{self.stack.postgres.port}/")
        text = text.replace("@valkey:6379", f"@127.0.0.1:{self.stack.valkey.port}")
        text = text.replace("llama-private:8080", f"127.0.0.1:{self.port('llama-private')}")
        text = text.replace("127.0.0.1:8080", f"127.0.0.1:{self.port('llama-private')}")
        text = text.replace("127.0.0.1:5555", f"127.0.0.1:{self.port('flower-private')}")
        text = re.sub(r"llama-shareable:8080", "127.0.0.1:9", text)
        text = text.replace("/tmp/ready", str(self.directory / f"{service}.ready"))  # noqa: S108
        for name in sorted(files, key=len, reverse=True):
            text = text.replace(f"/run/secrets/{name}", str(self.secrets / files[name]))
        return text.replace("/run/secrets", str(self.secrets))

    def port(self, service: str) -> int:
        return Home(self.directory).port(service)

    def environment(self, service: str) -> dict[str, str]:
        declared = self.compose["services"][service].get("environment", {})
        variables = {name: self.localized(service, str(v)) for name, v in declared.items()}
        changed = {
            "VESTRY_LLAMA_PORT": str(self.port("llama-private")),
            "VESTRY_LLAMA_HOST": "127.0.0.1",
            "VESTRY_FORWARD": f"{self.port('port-forwarder')}=127.0.0.1:{self.stack.postgres.port}",
            "VESTRY_NICE": "0",
        }
        variables |= {name: value for name, value in changed.items() if name in variables}
        # The model takes long to load and is not part of a command.
        return {**base_environment(), **variables, "VESTRY_EMBEDDING_BACKEND": "echo"}

    def command(self, service: str) -> list[str]:
        program, *rest = self.compose["services"][service]["command"]
        path = Path(sys.executable).with_name(program)
        return [str(path), *(self.localized(service, part) for part in rest)]

    def healthy(self, service: str) -> bool:
        """Result of the service's health check."""
        _, program, *rest = self.compose["services"][service]["healthcheck"]["test"]
        path = Path(sys.executable).with_name(program) if program == "python" else Path(program)
        check = [str(path), *(self.localized(service, part) for part in rest)]
        return subprocess.run(check, capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Servers with the passwords of `compose_secrets`."""
    directory = tmp_path_factory.mktemp("compose")
    secrets = directory / "secrets"
    compose_secrets.make(secrets)
    (secrets / "openai").write_text("not a real key")
    for path in secrets.iterdir():
        path.chmod(0o600)
    text = (ROOT / "compose.yaml").read_text(encoding="utf-8")
    compose = yaml.safe_load(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text))
    with temporary_home() as path:
        home = Home(path)
        home.create()
        names = {f"postgres.{role}": role for role in ROLES}
        names |= {f"valkey.{user}": f"valkey_{user}" for user in USERS}
        names |= {"postgres.postgres": "postgres"}
        for name, file in names.items():
            write_private(home.secrets / f"{name}.password", (secrets / file).read_text())
        with DevStack(path) as stack:
            site = Site(stack, secrets, directory, compose)
            flower = secrets / "flower_private.py"
            flower.write_text(flower.read_text().replace("5555", str(site.port("flower-private"))))
            yield site


@pytest.fixture(scope="module")
def running(site: Site) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    done = subprocess.run(
        site.command("migrations"), env=site.environment("migrations"), cwd=ROOT, check=False,
        capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with ExitStack() as stack:
        started = {}
        for service in SERVICES:
            log = stack.enter_context((site.directory / f"{service}.log").open("wb"))
            started[service] = stack.enter_context(
                subprocess.Popen(
                    site.command(service), env=site.environment(service), cwd=ROOT, stdout=log,
                    stderr=log,
                )
            )  # fmt: skip
            stack.callback(started[service].terminate)
        yield started


def log_of(site: Site, service: str) -> str:
    return (site.directory / f"{service}.log").read_text()


@pytest.mark.parametrize("service", SERVICES)
def test_each_service_becomes_healthy(site: Site, running: Any, service: str) -> None:
    until = time.monotonic() + HEALTHY_WITHIN_S
    while not site.healthy(service):
        assert running[service].poll() is None, log_of(site, service)
        assert time.monotonic() < until, log_of(site, service)
        time.sleep(0.2)


def test_no_service_lacks_a_permission_in_the_broker(site: Site, running: Any) -> None:
    time.sleep(1)
    for service in SERVICES:
        assert running[service].poll() is None, log_of(site, service)
        assert "NOPERM" not in log_of(site, service)
        assert "NoPermission" not in log_of(site, service)


def test_private_job_is_enqueued_through_the_port_forwarder_and_done(
    site: Site, running: Any
) -> None:
    assert running
    eventually(lambda: site.healthy("port-forwarder"), within=HEALTHY_WITHIN_S)
    password = (site.secrets / "vestry_producer").read_text()
    url = f"postgresql://vestry_producer:{password}@127.0.0.1:{site.port('port-forwarder')}/vestry"
    ring = site.secrets / compose_secrets.KEYRING_FILE
    with Vestry(url, ring) as vestry, psycopg.connect(url, autocommit=True) as conn:
        job = vestry.enqueue(conn, Embedding(texts=["hello"]), owner="ann", privacy="private")
        assert vestry.wait(job, timeout=60)
