"""`vestry models` and the doctor's checks of models, with servers that respond, fail or are absent."""

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
UNREACHABLE = "http://127.0.0.1:9"


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


def model_checks() -> dict[str, Check]:
    """The doctor's checks of models, by name."""
    return {check.name: check for check in checkout_checks()}


def test_tesseract_is_present_with_its_languages(capsys: pytest.CaptureFixture[str]) -> None:
    rows = models(capsys)
    assert [rows["tesseract"][name] for name in ("reachable", "present", "ready")] == [True] * 3
    # Its traineddata is the user's own.
    assert rows["tesseract-finetuned"]["present"] is False


def test_list_shows_present_models_and_how_to_get_others(
    ollama: FakeOllama, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VESTRY_BACKENDS", f"ollama={ollama.url} llama-cpp={UNREACHABLE}/v1")
    rows = models(capsys)
    present, absent, unreachable = (
        rows["llama3.2:3b"], rows["nomic-embed-text"], rows["phi-3-mini"]
    )  # fmt: skip
    assert [present[name] for name in ("reachable", "present", "fits", "ready")] == [True] * 4
    assert 2 * GB < present["bytes"] < 3 * GB
    assert (absent["reachable"], absent["present"], absent["ready"]) == (True, False, False)
    assert absent["get"] == "vestry models pull nomic-embed-text"
    assert (unreachable["enabled"], unreachable["reachable"], unreachable["present"]) == (
        True,
        False,
        None,
    )
    assert (rows["gpt-4o-mini"]["enabled"], rows["gpt-4o-mini"]["reachable"]) == (False, None)
    assert main(["models", "list"]) == 0
    shown = capsys.readouterr().out
    assert "nomic-embed-text: vestry models pull nomic-embed-text" in shown
    assert "llama3.2:3b:" not in shown


def test_pull_shows_progress_and_installs_the_model(
    ollama: FakeOllama, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VESTRY_BACKENDS", f"ollama={ollama.url}")
    assert main(["models", "pull", "nomic-embed-text", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"model": "nomic-embed-text", "pulled": True, "from": ollama.url}
    assert "nomic-embed-text: pulling 4b5c" in err
    assert models(capsys)["nomic-embed-text"]["ready"]


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("no-such-model", 2, "The catalogue has no model no-such-model"),
        ("gpt-4o-mini", 2, "to get it: VESTRY_BACKENDS=openai"),
        ("llama3.2:3b", 3, "cannot be reached"),
    ],
)
def test_failed_pull_names_the_reason(
    name: str, code: int, message: str,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("VESTRY_BACKENDS", f"ollama={UNREACHABLE}")
    assert main(["models", "pull", name]) == code
    assert message in " ".join(capsys.readouterr().err.split())


def test_doctor_accepts_absent_optional_models() -> None:
    checks = model_checks()
    assert all(check.ok for check in checks.values())
    assert "not enabled; about 2.2 GB; to get it" in checks["model llama3.2:3b"].detail
    assert "backend ollama" not in checks


def test_doctor_rejects_configured_backends_that_cannot_work(
    ollama: FakeOllama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "key"
    write_private(key, "sesame")
    with FaultServer(key="sesame") as cloud:
        monkeypatch.setenv(
            "VESTRY_BACKENDS", f"openai={cloud.url}/v1 anthropic={cloud.url} ollama={ollama.url}"
        )
        monkeypatch.setenv("VESTRY_BACKEND_KEYS", f"openai={key}")
        checks = model_checks()
        # Anthropic has no key; OpenAI responds, without the catalogue's models.
        assert not checks["backend anthropic"].ok
        assert "VESTRY_BACKEND_KEYS=anthropic=FILE" in checks["backend anthropic"].detail
        assert not checks["backend openai"].ok
        assert "none of the catalogue's models" in checks["backend openai"].detail
        assert checks["backend ollama"].ok
        assert checks["model llama3.2:3b"].detail == "on ollama; about 2.2 GB"
        assert "not on ollama" in checks["model nomic-embed-text"].detail

        cloud.fault = status(401)
        assert "answers with status 401" in model_checks()["backend openai"].detail
        assert not cloud.received("messages"), "a probe sends no prompt"


def test_discovered_backend_of_running_stack_is_optional(home: Path, ollama: FakeOllama) -> None:
    def stack(url: str, *discovered: str) -> None:
        document = {"models": {"backends": {"ollama": url}, "keys": {}, "found": discovered}}
        write_private(home / "client.json", json.dumps(document))

    stack(ollama.url, "ollama")
    assert model_checks()["model llama3.2:3b"].detail.startswith("on ollama")
    stack(UNREACHABLE, "ollama")
    assert model_checks()["backend ollama"].ok
    stack(UNREACHABLE)
    assert not model_checks()["backend ollama"].ok


def test_model_over_the_memory_is_an_error_only_if_present(
    ollama: FakeOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "workers.model_servers.inventory.model_memory", lambda _: Memory("machine", GB, GB // 2)
    )
    monkeypatch.setenv("VESTRY_BACKENDS", f"ollama={ollama.url}")
    checks = model_checks()
    assert not checks["model llama3.2:3b"].ok
    assert checks["model llama3.2:3b"].detail == "larger than the machine's 1.0 GB; about 2.2 GB"
    assert checks["model phi-3-mini"].ok
    enough = Memory("machine", 9 * GB, GB)
    monkeypatch.setattr("workers.model_servers.inventory.model_memory", lambda _: enough)
    assert "and 1.0 GB are free now" in model_checks()["model llama3.2:3b"].detail


def test_model_memory_is_that_of_the_graphics_card() -> None:
    cards = "24564, 20000\n8192, 1000\n"
    assert model_memory("auto", lambda: cards) == Memory("graphics card", 24564 << 20, 20000 << 20)
    assert model_memory("cuda:1", lambda: cards) == Memory("graphics card", 8192 << 20, 1000 << 20)
    for device, printed in (("cpu", cards), ("auto", None), ("auto", "nonsense")):
        memory = model_memory(device, lambda printed=printed: printed)
        assert memory.of == "machine"
        assert 0 < memory.free <= memory.total


def test_invalid_setting_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value, message in (
        ("VESTRY_SLOTS", "none", "VESTRY_SLOTS"),
        ("VESTRY_BACKENDS", "nonsense", "there is no backend nonsense"),
        ("VESTRY_CATALOGUE", "/no/such/file", "cannot be read"),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            with pytest.raises(InventoryError, match=message):
                probe_all(*load_settings(), {})
            assert not model_checks()["catalogue"].ok
            assert main(["models", "list"]) == 2
            assert message in capsys.readouterr().err
