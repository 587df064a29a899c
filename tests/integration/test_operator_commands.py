"""`vestry keys`, `forget` and `audit` with an operator's login."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.producer_helpers import HELLO
from vestry import KeyRing, Vestry
from vestry.cli import main
from workers.stack.dev_stack import DevStack


@pytest.fixture(autouse=True)
def operator(clean: DevStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set an operator's environment, and give ann a private job.

    Returns:
        The key ring's path.
    """
    path = tmp_path / "ring.json"
    KeyRing.generate(path)
    password = tmp_path / "password"
    login = clean.database_url("vestry_operator")
    password.write_text(login.split(":")[2].split("@")[0])
    url = login.replace(f":{password.read_text()}@", "@")
    monkeypatch.setenv("VESTRY_OPERATOR_URL", url)
    monkeypatch.setenv("VESTRY_OPERATOR_PASSWORD_FILE", str(password))
    monkeypatch.setenv("VESTRY_KEYRING_FILE", str(path))
    producer = clean.database_url("vestry_producer")
    with Vestry(producer, path) as vestry, psycopg.connect(producer, autocommit=True) as conn:
        vestry.enqueue(conn, HELLO, owner="ann", privacy="private")
    return path


def json_of(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, Any]:
    assert main([*arguments, "--json"]) == code
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def text_of(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert main(list(arguments)) == code
    out = capsys.readouterr()
    return " ".join((out.out + out.err).split())


def test_keys_are_listed_rotated_and_retired(capsys: pytest.CaptureFixture[str]) -> None:
    (first,) = json_of(capsys, "keys", "list")["keys"]
    assert (first["current"], first["wraps"], first["in_ring"]) == (True, 1, True)
    done = json_of(capsys, "keys", "rotate")
    assert (done["rewrapped"], done["left"], done["new"]) == (1, 0, True)
    assert "old: unwraps only" in text_of(capsys, "keys", "list")
    assert json_of(capsys, "keys", "retire") == {"retired": [first["key"]]}
    assert "retired" in text_of(capsys, "keys", "list")
    assert (
        json_of(capsys, "keys", "retire", done["current"], code=2)["error"]["code"]
        == "invalid_input"
    )
    key = json_of(capsys, "keys", "new")["key"]
    assert "not used yet" in text_of(capsys, "keys", "list")
    assert json_of(capsys, "keys", "rotate")["current"] == key


def test_keys_fail_when_a_used_key_is_not_in_the_key_ring(
    capsys: pytest.CaptureFixture[str], operator: Path
) -> None:
    operator.unlink()
    KeyRing.generate(operator)
    assert "not in the key ring" in text_of(capsys, "keys", "list", code=1)
    assert json_of(capsys, "keys", "rotate", code=1)["left"] == 1


def test_forget_deletes_an_owner_and_reports_backups(capsys: pytest.CaptureFixture[str]) -> None:
    report = json_of(capsys, "forget", "ann", "--backup-days", "30")
    assert report["owner"] == "ann"
    assert (report["cancelled"], report["gone"]["keys"], report["kept"]["jobs"]) == (1, 1, 1)
    assert report["backups"]["until"] > report["forgotten_at"]
    assert "job records without content" in text_of(capsys, "forget", "ann", "--yes")
    assert json_of(capsys, "forget", "unknown", code=2)["error"]["code"] == "unknown_owner"


def test_audit_report_counts_no_private_requests(capsys: pytest.CaptureFixture[str]) -> None:
    report = json_of(capsys, "audit", "report", "--since", "2026-07-01", "--until", "2026-10-01")
    assert report["clean"]
    assert report["totals"]["private"] == {"requests": 0, "bytes": 0}
    assert "0 requests were made for private jobs" in text_of(
        capsys, "audit", "report", "--since", "2026-07-01"
    )
    assert json_of(capsys, "audit", "report", code=2)["error"]["code"] == "usage"


def test_missing_operator_login_error_names_the_setting(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VESTRY_OPERATOR_URL")
    monkeypatch.setenv("VESTRY_DATABASE_URL", "postgresql://somewhere/x")
    assert "VESTRY_OPERATOR_URL" in json_of(capsys, "keys", "list", code=3)["error"]["message"]
