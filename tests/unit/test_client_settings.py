"""`vestry.settings`: where a client finds the embedded stack."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vestry.errors import SettingsError
from vestry.settings import home, resolve
from workers.home import default_home


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VESTRY_DATABASE_URL", "VESTRY_KEYRING_FILE", "VESTRY_HOME"):
        monkeypatch.delenv(name, raising=False)


def test_missing_settings_error_names_the_directories_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VESTRY_HOME", str(tmp_path))
    with pytest.raises(SettingsError, match=re.escape(str(tmp_path))):
        resolve()
    monkeypatch.delenv("VESTRY_HOME")
    directory = tmp_path / "here" / "below"
    directory.mkdir(parents=True)
    (tmp_path / "here" / ".vestry").mkdir()
    monkeypatch.chdir(directory)
    monkeypatch.setattr("vestry.settings._checkout", lambda: tmp_path / "checkout")
    with pytest.raises(SettingsError) as caught:
        resolve()
    assert str(tmp_path / "here" / ".vestry") in str(caught.value)
    assert str(tmp_path / "checkout" / ".vestry") in str(caught.value)


def test_running_stack_of_the_checkout_is_found_from_any_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = tmp_path / "checkout" / ".vestry"
    running.mkdir(parents=True)
    (running / "client.json").write_text('{"database_url": "postgresql://checkout/x"}')
    monkeypatch.setattr("vestry.settings._checkout", lambda: tmp_path / "checkout")
    monkeypatch.chdir("/")
    assert home() == running
    assert "host=checkout" in resolve().conninfo
    # The current directory's stack comes first, but only while it runs.
    nearer = tmp_path / ".vestry"
    nearer.mkdir()
    monkeypatch.chdir(tmp_path)
    assert home() == running
    (nearer / "client.json").write_text("{}")
    assert home() == nearer


def test_clients_and_vestry_up_use_the_same_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    assert home() == default_home()
