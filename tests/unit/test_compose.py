"""compose.yaml says what the code understands, and keeps the walls that it can keep."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from models.roles import ROLES
from vestry.keyring import KeyRing
from vestry.lanes import LANES, Privacy
from workers import compose_secrets, migrate
from workers.postgres_server import SETTINGS as EMBEDDED_SETTINGS
from workers.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
MIGRATION_VARIABLES = {"VESTRY_ADMIN_URL", "VESTRY_ADMIN_PASSWORD_FILE", "VESTRY_ROLE_SECRETS"}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    return loaded


def environment(service: dict[str, Any]) -> dict[str, str]:
    found: dict[str, str] = service.get("environment", {})
    return found


def ours(compose: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: s for name, s in compose["services"].items() if s["image"] == "vestry"}


def workers(compose: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: s for name, s in ours(compose).items() if "VESTRY_LANES" in environment(s)}


def test_every_variable_is_one_the_code_reads(compose: dict[str, Any]) -> None:
    known = {f"VESTRY_{name.upper()}" for name in Settings.model_fields} | MIGRATION_VARIABLES
    for service in ours(compose).values():
        assert set(environment(service)) <= known


def test_workers_settings_are_accepted(
    compose: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert workers(compose)
    monkeypatch.chdir(tmp_path)
    for service in workers(compose).values():
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment(service).items():
                patch.setenv(name, value)
            settings = Settings()
        assert {LANES[lane].privacy for lane in settings.lanes} == {settings.privacy}


def test_every_local_inference_lane_is_served_once(compose: dict[str, Any]) -> None:
    served = [
        lane
        for s in workers(compose).values()
        for lane in environment(s)["VESTRY_LANES"].split(",")
    ]
    assert sorted(served) == sorted(name for name, lane in LANES.items() if lane.pool == "gpu")


def test_private_workers_have_no_way_out(compose: dict[str, Any]) -> None:
    for service in workers(compose).values():
        if environment(service)["VESTRY_PRIVACY"] == Privacy.PRIVATE:
            assert all(compose["networks"][name]["internal"] for name in service["networks"])


def test_the_key_ring_reaches_private_workers_alone(compose: dict[str, Any]) -> None:
    holders = {name for name, s in compose["services"].items() if "keyring" in s.get("secrets", [])}
    private = {
        name
        for name, s in workers(compose).items()
        if environment(s)["VESTRY_PRIVACY"] == "private"
    }
    assert private
    assert holders == private


def test_no_class_holds_the_other_class_s_logins(compose: dict[str, Any]) -> None:
    for service in ours(compose).values():
        if privacy := environment(service).get("VESTRY_PRIVACY"):
            other = next(str(p) for p in Privacy if p != privacy)
            assert not [name for name in service["secrets"] if other in name]
            assert other not in service["networks"]


def test_a_secret_named_in_an_environment_is_mounted(compose: dict[str, Any]) -> None:
    for service in ours(compose).values():
        text = f"{environment(service)} {service['command']}"
        named = set(re.findall(r"/run/secrets/(\w+)", text))
        assert named <= set(service["secrets"])
        assert set(service["secrets"]) <= set(compose["secrets"])


def test_no_secret_stands_in_the_file(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        for value in environment(service).values():
            assert not re.search(r"://[^/@]*:[^/@]*@", str(value)), "a password in a URL"
    assert "API_KEY" not in (ROOT / "compose.yaml").read_text(encoding="utf-8")


def test_ports_are_published_on_loopback_alone(compose: dict[str, Any]) -> None:
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


def test_the_secrets_are_made_once_and_are_what_is_mounted(
    compose: dict[str, Any], tmp_path: Path
) -> None:
    directory = tmp_path / "secrets"
    compose_secrets.make(directory)
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    mounted = {secret["file"].rpartition("/")[2] for secret in compose["secrets"].values()}
    assert mounted <= set(before)
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o600}

    compose_secrets.make(directory)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before

    KeyRing.load(directory / compose_secrets.KEYRING_FILE)
    for user in ("private", "shareable", "dispatcher"):
        assert before[f"valkey_{user}"] not in before[compose_secrets.ACL_FILE]
    passwords = migrate.role_passwords({"VESTRY_ROLE_SECRETS": str(directory)})
    assert set(passwords) == set(ROLES)
    assert len(set(passwords.values())) == len(ROLES)


def test_a_role_without_a_password_is_named(tmp_path: Path) -> None:
    compose_secrets.make(tmp_path / "secrets")
    (tmp_path / "secrets" / "vestry_cloud").unlink()
    with pytest.raises(migrate.MissingSettingError, match="vestry_cloud"):
        migrate.role_passwords({"VESTRY_ROLE_SECRETS": str(tmp_path / "secrets")})


def test_docker_reads_it(tmp_path: Path) -> None:
    docker = shutil.which("docker")
    plugin = docker and subprocess.run(
        [docker, "compose", "version"], capture_output=True, check=False
    )
    if not docker or not plugin or plugin.returncode != 0:
        pytest.skip("Docker's compose plugin is not installed here")
    compose_secrets.make(tmp_path / "secrets")
    env = tmp_path / "secrets" / compose_secrets.ENVIRONMENT_FILE
    command = [docker, "compose", f"--env-file={env}", f"--file={ROOT / 'compose.yaml'}", "config"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
