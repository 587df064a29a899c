"""What the command line prints and ends with, without a database."""

from __future__ import annotations

import json
import re
from importlib.metadata import EntryPoint, version
from pathlib import Path

import pytest
import typer

from vestry.cli import main
from vestry.cli.errors import CommandError, ExitCode, explain
from vestry.cli.index.progress import pace
from vestry.cli.output import duration
from vestry.cli.plugins import add_commands
from vestry.cli.search import printable, snippet
from vestry.errors import (
    InvalidInput,
    JobExpired,
    SettingsError,
    Unavailable,
    UnknownJob,
    WaitTimeout,
)
from vestry.settings import home, resolve
from workers.home import default_home

PAGE = Path(__file__).parents[2] / "samples" / "phototest.tif"
COMMANDS = [
    ["submit", "embedding", "--text", "x", "--owner", "o", "--privacy", "private"],
    ["submit", "ocr", str(PAGE), "--owner", "o", "--privacy", "private"],
    [
        "submit",
        "classification",
        "--text",
        "x",
        "--label",
        "a",
        "--label",
        "b=about",
        "--owner",
        "o",
        "--privacy",
        "private",
    ],
    ["submit", "rerank", "--query", "x", "--passage", "y", "--owner", "o", "--privacy", "private"],
    ["search", "x", "--owner", "o"],
    ["status"],
    ["status", "01a20528-b5cb-756d-a01a-f364eac0e0f9"],
    ["wait", "01a20528-b5cb-756d-a01a-f364eac0e0f9"],
    ["result", "01a20528-b5cb-756d-a01a-f364eac0e0f9"],
    ["cancel", "01a20528-b5cb-756d-a01a-f364eac0e0f9"],
    ["lanes"],
    ["lanes", "pause", "private.bulk.gpu"],
    ["lanes", "resume", "private.bulk.gpu"],
]


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No database is configured, and none is found."""
    for name in ("VESTRY_DATABASE_URL", "VESTRY_KEYRING_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("VESTRY_HOME", str(tmp_path))


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_without_a_database_every_command_says_so_as_one_document(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--json"]) == ExitCode.UNAVAILABLE
    told = capsys.readouterr()
    assert json.loads(told.out)["error"]["code"] == "settings"
    assert told.err == ""
    assert main(command) == ExitCode.UNAVAILABLE
    told = capsys.readouterr()
    assert told.out == ""
    assert "vestry up" in told.err
    assert "Traceback" not in told.err


def test_index_says_so_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text":"x"}\n', encoding="utf-8")
    command = ["index", str(file), "--source", "s", "--owner", "o", "--privacy", "private"]
    assert main([*command, "--json"]) == ExitCode.UNAVAILABLE
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "settings"


def test_doctor_is_one_document_and_not_content(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == ExitCode.FAILED
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is False
    found = {check["name"]: check["ok"] for check in document["checks"]}
    assert found["python"]
    assert not found["settings"]
    assert not found["stack"]


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["submit", "embedding", "--text", "x", "--owner", "o"], "no default"),
        (["index", "-", "--source", "s", "--owner", "o"], "no default"),
        (["submit", "embedding", "--text", "x", "--owner", "o", "--privacy", "public"], "private"),
        (["submit", "embedding", "--text", "x", "--privacy", "private"], "--owner"),
        (
            ["submit", "embedding", "--text", " ", "--owner", "o", "--privacy", "private"],
            "texts[0]",
        ),
        (
            ["index", "/no/such", "--source", "s", "--owner", "o", "--privacy", "private"],
            "/no/such",
        ),
        (["index", "/tmp", "--source", "s", "--owner", "o", "--privacy", "private"], "directory"),  # noqa: S108
        (["index", "-", "--source", "S!", "--owner", "o", "--privacy", "private"], "source"),
        (["search"], "QUERY"),
        (["no-such-command"], "no-such-command"),
        (["status", "--no-such-option"], "--no-such-option"),
        (["submit"], "submit --help"),
    ],
)
def test_wrong_usage_is_one_clear_error(
    command: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--json"]) == ExitCode.USAGE
    told = capsys.readouterr()
    assert says in json.loads(told.out)["error"]["message"]
    assert main(command) == ExitCode.USAGE
    told = capsys.readouterr()
    assert told.out == ""
    assert says in told.err.replace("\n", " ")


def test_a_usage_error_and_where_help_is_are_two_sentences(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["search", "x", "--owner", "o", "--limit", "0", "--json"]) == ExitCode.USAGE
    message = json.loads(capsys.readouterr().out)["error"]["message"]
    assert message.endswith(". See `vestry search --help`.")


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == ExitCode.OK
    assert capsys.readouterr().out == f"vestry {version('vestry')}\n"


def test_without_a_database_the_places_looked_at_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingsError, match=re.escape(str(tmp_path))):
        resolve()
    monkeypatch.delenv("VESTRY_HOME")
    here = tmp_path / "here" / "below"
    here.mkdir(parents=True)
    (tmp_path / "here" / ".vestry").mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr("vestry.settings._checkout", lambda: tmp_path / "checkout")
    with pytest.raises(SettingsError) as caught:
        resolve()
    assert str(tmp_path / "here" / ".vestry") in str(caught.value)
    assert str(tmp_path / "checkout" / ".vestry") in str(caught.value)


def test_a_stack_of_the_checkout_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VESTRY_HOME")
    running = tmp_path / "checkout" / ".vestry"
    running.mkdir(parents=True)
    (running / "client.json").write_text('{"database_url": "postgresql://checkout/x"}')
    monkeypatch.setattr("vestry.settings._checkout", lambda: tmp_path / "checkout")
    monkeypatch.chdir("/")
    assert home() == running
    assert "host=checkout" in resolve().conninfo
    # One that runs here comes first; one that ran here once does not hide it.
    nearer = tmp_path / ".vestry"
    nearer.mkdir()
    monkeypatch.chdir(tmp_path)
    assert home() == running
    (nearer / "client.json").write_text("{}")
    assert home() == nearer


def test_the_checkout_is_where_up_keeps_its_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VESTRY_HOME")
    monkeypatch.chdir("/")
    assert home() == default_home()


def test_help_is_there_for_everything(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ([], ["--help"], ["lanes", "--help"], ["submit", "embedding", "-h"]):
        assert main(command) == ExitCode.OK
        assert "Usage" in capsys.readouterr().out


def test_exit_codes_go_by_class() -> None:
    assert explain(WaitTimeout()).exit_code == ExitCode.TIMEOUT
    assert explain(Unavailable()).exit_code == ExitCode.UNAVAILABLE
    assert explain(UnknownJob()).exit_code == ExitCode.USAGE
    assert explain(InvalidInput("x", "y")).exit_code == ExitCode.USAGE
    assert explain(JobExpired("expired", "too late")).exit_code == ExitCode.FAILED
    assert explain(KeyboardInterrupt()).exit_code == ExitCode.INTERRUPTED
    assert explain(CommandError("a", "b", ExitCode.TIMEOUT, job="c").with_traceback(None)).more


def test_what_was_not_foreseen_is_shown_by_class_alone() -> None:
    failure = explain(ValueError("SECRET"))
    assert "SECRET" not in json.dumps(failure.document())
    assert "ValueError" in failure.message


def test_commands_of_an_absent_checkout_say_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = EntryPoint("up", "no_such_workers.up:register", "vestry.commands")
    monkeypatch.setattr("vestry.cli.plugins.entry_points", lambda **_: [gone])
    assert main(["up", "--detach", "--json"]) == ExitCode.UNAVAILABLE
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "not_installed"
    assert "vestry" in error["message"]
    assert main(["--help"]) == ExitCode.OK
    assert "up" in capsys.readouterr().out


def test_commands_of_the_checkout_are_added() -> None:
    app = typer.Typer()
    add_commands(app, [EntryPoint("up", f"{__name__}:register_up", "vestry.commands")])
    names = [command.name for command in app.registered_commands]
    assert names.count("up") == 1
    assert "down" in names


def register_up(app: typer.Typer) -> None:
    app.command("up")(lambda: None)


def test_a_document_cannot_steer_the_terminal() -> None:
    assert "\x1b" not in printable("a\x1b[2Jb\x9b31mc")
    turned = "".join(map(chr, (0x202A, 0x202B, 0x202C, 0x202D, 0x202E, 0x2066, 0x2069)))
    assert printable(f"a{turned}b") == f"a{' ' * len(turned)}b"
    joined = "\N{WOMAN}\N{ZERO WIDTH JOINER}\N{PERSONAL COMPUTER} \N{ZERO WIDTH NON-JOINER}"
    assert printable(joined) == joined
    assert snippet("one\n\ntwo") == "one two"
    assert len(snippet("word " * 500)) <= 402


def test_durations_and_rates_read_well() -> None:
    assert [duration(s) for s in (0.04, 1.44, 12.4, 185, 7800, None)] == [
        "40 ms",
        "1.4 s",
        "12 s",
        "3 min 05 s",
        "2 h 10 min",
        "-",
    ]
    assert pace(12.34, 125) == "12.3/s, 10 s left"
    assert pace(None, 5) == "rate not known yet"
