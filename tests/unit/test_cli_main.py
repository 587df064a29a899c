"""The command line without a database: errors, exit codes, usage, version and help."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint, version
from pathlib import Path

import pytest
import typer

from vestry.cli import main
from vestry.cli.errors import CommandError, ExitCode, failure_from
from vestry.cli.plugins import add_commands
from vestry.errors import InvalidInput, JobExpired, Unavailable, UnknownJob, WaitTimeout

PAGE = Path(__file__).parents[2] / "samples" / "phototest.tif"
OWNER = ["--owner", "o", "--privacy", "private"]
JOB = "01a20528-b5cb-756d-a01a-f364eac0e0f9"
COMMANDS = [
    ["submit", "embedding", "--text", "x", *OWNER],
    ["submit", "ocr", str(PAGE), *OWNER],
    ["submit", "classification", "--text", "x", "--label", "a", "--label", "b=about", *OWNER],
    ["submit", "rerank", "--query", "x", "--passage", "y", *OWNER],
    ["search", "x", "--owner", "o"],
    ["status"],
    ["status", JOB],
    ["wait", JOB],
    ["result", JOB],
    ["cancel", JOB],
    ["lanes"],
    ["lanes", "pause", "private.bulk.gpu"],
    ["lanes", "resume", "private.bulk.gpu"],
]


@pytest.fixture(autouse=True)
def no_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No database is configured, and VESTRY_HOME has no stack."""
    for name in ("VESTRY_DATABASE_URL", "VESTRY_KEYRING_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("VESTRY_HOME", str(tmp_path))


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_command_without_database_prints_one_error(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--json"]) == ExitCode.UNAVAILABLE
    printed = capsys.readouterr()
    assert json.loads(printed.out)["error"]["code"] == "settings"
    assert printed.err == ""
    assert main(command) == ExitCode.UNAVAILABLE
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "vestry up" in printed.err
    assert "Traceback" not in printed.err


def test_index_without_database_prints_one_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text":"x"}\n', encoding="utf-8")
    assert main(["index", str(file), "--source", "s", *OWNER, "--json"]) == ExitCode.UNAVAILABLE
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "settings"


def test_doctor_without_database_reports_failed_checks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == ExitCode.FAILED
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is False
    checks = {check["name"]: check["ok"] for check in document["checks"]}
    assert checks["python"]
    assert not checks["settings"]
    assert not checks["stack"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["submit", "embedding", "--text", "x", "--owner", "o"], "no default"),
        (["index", "-", "--source", "s", "--owner", "o"], "no default"),
        (["submit", "embedding", "--text", "x", "--owner", "o", "--privacy", "public"], "private"),
        (["submit", "embedding", "--text", "x", "--privacy", "private"], "--owner"),
        (["submit", "embedding", "--text", " ", *OWNER], "texts[0]"),
        (["index", "/no/such", "--source", "s", *OWNER], "/no/such"),
        (["index", "/tmp", "--source", "s", *OWNER], "directory"),  # noqa: S108
        (["index", "-", "--source", "S!", *OWNER], "source"),
        (["search"], "QUERY"),
        (["no-such-command"], "no-such-command"),
        (["status", "--no-such-option"], "--no-such-option"),
        (["submit"], "submit --help"),
    ],
)
def test_wrong_usage_prints_one_error(
    command: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--json"]) == ExitCode.USAGE
    printed = capsys.readouterr()
    assert message in json.loads(printed.out)["error"]["message"]
    assert main(command) == ExitCode.USAGE
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err.replace("\n", " ")


def test_usage_error_ends_with_the_help_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "x", "--owner", "o", "--limit", "0", "--json"]) == ExitCode.USAGE
    message = json.loads(capsys.readouterr().out)["error"]["message"]
    assert message.endswith(". See `vestry search --help`.")


def test_version_option_prints_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == ExitCode.OK
    assert capsys.readouterr().out == f"vestry {version('vestry')}\n"


def test_commands_have_help(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ([], ["--help"], ["lanes", "--help"], ["submit", "embedding", "-h"]):
        assert main(command) == ExitCode.OK
        assert "Usage" in capsys.readouterr().out


def test_exit_code_depends_on_exception_class() -> None:
    assert failure_from(WaitTimeout()).exit_code == ExitCode.TIMEOUT
    assert failure_from(Unavailable()).exit_code == ExitCode.UNAVAILABLE
    assert failure_from(UnknownJob()).exit_code == ExitCode.USAGE
    assert failure_from(InvalidInput("x", "y")).exit_code == ExitCode.USAGE
    assert failure_from(JobExpired("expired", "too late")).exit_code == ExitCode.FAILED
    assert failure_from(KeyboardInterrupt()).exit_code == ExitCode.INTERRUPTED
    timeout = CommandError("a", "b", ExitCode.TIMEOUT, job="c").with_traceback(None)
    assert failure_from(timeout).fields == {"job": "c"}


def test_unexpected_exception_is_printed_by_class_only() -> None:
    failure = failure_from(ValueError("SECRET"))
    assert "SECRET" not in json.dumps(failure.document())
    assert "ValueError" in failure.message


def test_command_of_missing_checkout_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = EntryPoint("up", "no_such_workers.up:register", "vestry.commands")
    monkeypatch.setattr("vestry.cli.plugins.entry_points", lambda **_: [missing])
    assert main(["up", "--detach", "--json"]) == ExitCode.UNAVAILABLE
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "not_installed"
    assert "vestry" in error["message"]
    assert main(["--help"]) == ExitCode.OK
    assert "up" in capsys.readouterr().out


def test_command_of_checkout_replaces_its_placeholder() -> None:
    app = typer.Typer()
    add_commands(app, [EntryPoint("up", f"{__name__}:register_up", "vestry.commands")])
    names = [command.name for command in app.registered_commands]
    assert names.count("up") == 1
    assert "down" in names


def register_up(app: typer.Typer) -> None:
    app.command("up")(lambda: None)
