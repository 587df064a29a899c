"""Settings of a process: empty values, and one sentence for each fault."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from models.bootstrap import ROLES
from vestry.cli.errors import CommandError, ExitCode
from workers.home import CHECKOUT
from workers.settings import Settings
from workers.stack import commands
from workers.stack.process import base_environment

CONNECTIONS = {
    "VESTRY_DATABASE_URL": "postgresql://vestry:secret@127.0.0.1:1/vestry",
    "VESTRY_BROKER_URL": "redis://vestry:secret@127.0.0.1:1/0",
}
FAULTS = [
    ({"VESTRY_WINDOW": "3"}, ["VESTRY_WINDOW was renamed: set VESTRY_HINTS_PER_SLOT instead"]),
    ({"VESTRY_POLL_S": "secret"}, ["VESTRY_POLL_S: must be a number"]),
    (
        {"VESTRY_THREADS": "", "VESTRY_SLOTS": "65"},
        ["VESTRY_SLOTS: must be at most 64", "VESTRY_THREADS: must be a whole number"],
    ),
    (
        {"VESTRY_LEASE_S": "10", "VESTRY_HEARTBEAT_S": "8"},
        ["VESTRY_HEARTBEAT_S must be at most half of VESTRY_LEASE_S"],
    ),
    ({"VESTRY_LOG_LEVEL": "secret"}, ["VESTRY_LOG_LEVEL: must be DEBUG, INFO, WARNING or ERROR"]),
]


@pytest.mark.parametrize(
    "field",
    [
        "database_password_file", "broker_password_file", "keyring_file", "ready_file", "temp_dir",
        "catalogue", "tessdata",
    ],
)  # fmt: skip
def test_empty_path_is_unset(monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    monkeypatch.setenv(f"VESTRY_{field.upper()}", "")
    assert getattr(Settings(), field) is None


@pytest.mark.parametrize(
    ("variables", "sentences"),
    [
        *((CONNECTIONS | variables, sentences) for variables, sentences in FAULTS),
        (
            CONNECTIONS | {"VESTRY_BACKEND_KEYS": "openai"},
            ["VESTRY_BACKEND_KEYS: must be NAME=FILE pairs"],
        ),
        (
            CONNECTIONS | {"VESTRY_PRIVACY": "secret"},
            ["VESTRY_PRIVACY: must be 'private' or 'shareable'"],
        ),
        (
            CONNECTIONS | {"VESTRY_DATABASE_URL": "postgresql://vestry:secret@[host/vestry"},
            ["VESTRY_DATABASE_URL: must be a URL such as postgresql://USER@HOST/DATABASE"],
        ),
        (
            {
                "VESTRY_DATABASE_URL": "postgresql://vestry@127.0.0.1/vestry",
                "VESTRY_DATABASE_PASSWORD_FILE": "/nonexistent/secret",
                "VESTRY_BROKER_URL": "redis://vestry@127.0.0.1/0",
            },
            ["VESTRY_DATABASE_PASSWORD_FILE: the file cannot be read"],
        ),
        ({}, ["VESTRY_DATABASE_URL is not set", "VESTRY_BROKER_URL is not set"]),
    ],
)
def test_process_ends_with_a_sentence_per_fault(
    variables: dict[str, str], sentences: list[str]
) -> None:
    done = run("workers.dispatcher", variables)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [f"dispatcher: {sentence}" for sentence in sentences]
    assert "secret" not in done.stderr


@pytest.mark.parametrize("module", ["worker", "reconciler"])
def test_each_process_reports_faults_alike(module: str) -> None:
    done = run(f"workers.{module}", CONNECTIONS | {"VESTRY_POLL_S": "abc"})
    assert (done.returncode, done.stderr) == (1, f"{module}: VESTRY_POLL_S: must be a number\n")


@pytest.mark.parametrize(("variables", "sentences"), FAULTS)
def test_up_refuses_values_before_the_start(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], sentences: list[str]
) -> None:
    given = [f"{name}={value}" for name, value in variables.items()]
    with pytest.raises(CommandError) as caught:
        commands._settings(given)
    assert caught.value.exit_code == ExitCode.USAGE
    assert str(caught.value) == f"--set: {'; '.join(sentences)}"
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(CommandError) as caught:
        commands._settings([])
    assert caught.value.exit_code == ExitCode.USAGE
    assert str(caught.value) == f"environment: {'; '.join(sentences)}"


def test_set_overrides_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VESTRY_POLL_S", "abc")
    assert commands._settings(["VESTRY_POLL_S=2"]) == {"VESTRY_POLL_S": "2"}
    monkeypatch.setenv("VESTRY_LEASE_S", "20")
    with pytest.raises(CommandError, match=r"^--set: VESTRY_HEARTBEAT_S must be at most half"):
        commands._settings(["VESTRY_POLL_S=2", "VESTRY_HEARTBEAT_S=15"])


def run(module: str, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module], cwd=CHECKOUT, env=base_environment() | variables,
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize("below", ["", "home"])
@pytest.mark.parametrize("detach", [True, False])
def test_home_that_is_a_file_is_refused(tmp_path: Path, below: str, detach: bool) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(CommandError, match=f"^{re.escape(str(file))} is not a directory") as caught:
        commands.up(home=file / below, detach=detach)
    assert caught.value.exit_code == ExitCode.USAGE


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("postgresql://a:s3cret@127.0.0.1:1/vestry", "cannot connect to the database"),
        ("postgresql://a:s3cret@s3cret@127.0.0.1:1/vestry", "cannot connect to the database"),
        ("postgresql://a:s3cret@[127.0.0.1/vestry", "VESTRY_ADMIN_URL is malformed"),
        ("postgresql+psycopg://a:s3cret@127.0.0.1/vestry", "VESTRY_ADMIN_URL is malformed"),
    ],
)
@pytest.mark.parametrize("password_file", [True, False])
def test_migrate_reports_an_unusable_url(
    tmp_path: Path, url: str, sentence: str, password_file: bool
) -> None:
    for name in (*ROLES, "admin"):
        (tmp_path / name).write_text("s3cret", encoding="utf-8")
    variables = {"VESTRY_ADMIN_URL": url, "VESTRY_ROLE_SECRETS": str(tmp_path)}
    if password_file:
        variables["VESTRY_ADMIN_PASSWORD_FILE"] = str(tmp_path / "admin")
    done = run("workers.migrate", variables)
    assert done.returncode == 1
    assert done.stderr.startswith(f"migrate: {sentence}")
    assert len(done.stderr.splitlines()) == 1
    assert "s3cret" not in done.stderr
