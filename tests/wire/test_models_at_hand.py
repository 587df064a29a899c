"""`vestry models` and what the doctor says of models: servers that answer, misbehave or are away."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faultserver import FaultServer, status
from tests.ollama_fake import FakeOllama
from vestry.cli import main
from vestry.cli.doctor.checks import Check
from vestry.cli.plugins import checkout_checks
from workers.home import write_private
from workers.model_servers.inventory import (
    InventoryError,
    Memory,
    load_settings,
    model_memory,
    probe_all,
)

GB = 1_000_000_000
NOBODY = "http://127.0.0.1:9"


@pytest.fixture
def ollama() -> Iterator[FakeOllama]:
    with FakeOllama(None, {"llama3.2:3b": {}}) as running:
        yield running


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VESTRY_HOME", str(tmp_path))
    monkeypatch.setenv("VESTRY_DEVICE", "cpu")
    return tmp_path


def models(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    assert main(["models", "list", "--json"]) == 0
    return {row["name"]: row for row in json.loads(capsys.readouterr().out)["models"]}


def told() -> dict[str, Check]:
    """The doctor's checks of models, by name."""
    return {check.name: check for check in checkout_checks()}


def test_the_list_says_what_is_there_and_how_to_get_the_rest(
    ollama: FakeOllama, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VESTRY_BACKENDS", f"ollama={ollama.url} llama-cpp={NOBODY}/v1")
    rows = models(capsys)
    there, absent, away = rows["llama3.2:3b"], rows["nomic-embed-text"], rows["phi-3-mini"]
    assert (there["reachable"], there["present"], there["fits"], there["ready"]) == (True,) * 4
    assert 2 * GB < there["bytes"] < 3 * GB
    assert (absent["reachable"], absent["present"], absent["ready"]) == (True, False, False)
    assert absent["get"] == "vestry models pull nomic-embed-text"
    assert (away["enabled"], away["reachable"], away["present"]) == (True, False, None)
    assert (rows["gpt-4o-mini"]["enabled"], rows["gpt-4o-mini"]["reachable"]) == (False, None)
    assert main(["models", "list"]) == 0
    shown = capsys.readouterr().out
    assert "nomic-embed-text: vestry models pull nomic-embed-text" in shown
    assert "llama3.2:3b:" not in shown


def test_a_pull_shows_how_far_it_is_and_ends_with_the_model_there(
    ollama: FakeOllama, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VESTRY_BACKENDS", f"ollama={ollama.url}")
    assert main(["models", "pull", "nomic-embed-text", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"model": "nomic-embed-text", "pulled": True, "from": ollama.url}
    assert "nomic-embed-text: pulling 4b5c" in err
    assert models(capsys)["nomic-embed-text"]["ready"]


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [
        ("no-such-model", 2, "The catalogue has no model no-such-model"),
        ("gpt-4o-mini", 2, "to get it: VESTRY_BACKENDS=openai"),
        ("llama3.2:3b", 3, "cannot be reached"),
    ],
)
def test_a_pull_that_cannot_be_says_why(
    name: str, code: int, says: str,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("VESTRY_BACKENDS", f"ollama={NOBODY}")
    assert main(["models", "pull", name]) == code
    assert says in " ".join(capsys.readouterr().err.split())


def test_the_doctor_is_content_with_what_is_optional_and_absent() -> None:
    checks = told()
    assert all(check.ok for check in checks.values())
    assert "not in use; about 2.2 GB; to get it" in checks["model llama3.2:3b"].detail
    assert "backend ollama" not in checks


def test_the_doctor_is_not_content_with_what_was_asked_for_and_cannot_work(
    ollama: FakeOllama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "key"
    write_private(key, "sesame")
    with FaultServer(key="sesame") as cloud:
        monkeypatch.setenv(
            "VESTRY_BACKENDS", f"openai={cloud.url}/v1 anthropic={cloud.url} ollama={ollama.url}"
        )
        monkeypatch.setenv("VESTRY_BACKEND_KEYS", f"openai={key}")
        checks = told()
        # No key for one; the other answers, without the catalogue's model.
        assert not checks["backend anthropic"].ok
        assert "VESTRY_BACKEND_KEYS=anthropic=FILE" in checks["backend anthropic"].detail
        assert not checks["backend openai"].ok
        assert "none of the catalogue's models" in checks["backend openai"].detail
        assert checks["backend ollama"].ok
        assert checks["model llama3.2:3b"].detail == "on ollama; about 2.2 GB"
        assert "not on ollama" in checks["model nomic-embed-text"].detail

        cloud.fault = status(401)
        assert "answers with status 401" in told()["backend openai"].detail
        assert not cloud.was_offered("messages"), "a probe costs nothing"


def test_what_a_running_stack_found_is_looked_at_but_not_demanded(
    home: Path, ollama: FakeOllama
) -> None:
    def stack(url: str, *found: str) -> None:
        document = {"models": {"backends": {"ollama": url}, "keys": {}, "found": found}}
        write_private(home / "client.json", json.dumps(document))

    stack(ollama.url, "ollama")
    assert told()["model llama3.2:3b"].detail.startswith("on ollama")
    stack(NOBODY, "ollama")
    assert told()["backend ollama"].ok
    stack(NOBODY)
    assert not told()["backend ollama"].ok


def test_a_model_that_does_not_fit_is_a_fault_only_where_it_is_there(
    ollama: FakeOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "workers.model_servers.inventory.model_memory", lambda _: Memory("machine", GB, GB // 2)
    )
    monkeypatch.setenv("VESTRY_BACKENDS", f"ollama={ollama.url}")
    checks = told()
    assert not checks["model llama3.2:3b"].ok
    assert checks["model llama3.2:3b"].detail == "larger than the machine's 1.0 GB; about 2.2 GB"
    assert checks["model phi-3-mini"].ok
    room = Memory("machine", 9 * GB, GB)
    monkeypatch.setattr("workers.model_servers.inventory.model_memory", lambda _: room)
    assert "and 1.0 GB are free now" in told()["model llama3.2:3b"].detail


def test_memory_is_the_cards_where_models_run_on_one() -> None:
    cards = "24564, 20000\n8192, 1000\n"
    assert model_memory("auto", lambda: cards) == Memory("graphics card", 24564 << 20, 20000 << 20)
    assert model_memory("cuda:1", lambda: cards) == Memory("graphics card", 8192 << 20, 1000 << 20)
    for device, printed in (("cpu", cards), ("auto", None), ("auto", "nonsense")):
        found = model_memory(device, lambda printed=printed: printed)
        assert found.of == "machine"
        assert 0 < found.free <= found.total


def test_settings_that_cannot_be_used_are_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value, says in (
        ("VESTRY_SLOTS", "none", "VESTRY_SLOTS"),
        ("VESTRY_BACKENDS", "nonsense", "there is no backend nonsense"),
        ("VESTRY_CATALOGUE", "/no/such/file", "cannot be read"),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            with pytest.raises(InventoryError, match=says):
                probe_all(*load_settings(), {})
            assert not told()["catalogue"].ok
            assert main(["models", "list"]) == 2
            assert says in capsys.readouterr().err
