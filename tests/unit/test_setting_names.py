"""VESTRY_ variables: every process refuses former names; one parser reads lists of pairs."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from vestry.cli.errors import CommandError
from workers.home import CHECKOUT
from workers.setting_names import RENAMED, format_pairs, parse_pair, parse_pairs, reject_renamed
from workers.settings import Settings
from workers.stack import accounts, commands, port_forwarder
from workers.stack.process import base_environment
from workers.stack.settings import inherited_environment

PRESENT = {f"VESTRY_{name.upper()}" for name in Settings.model_fields} | {
    accounts.SETTING, port_forwarder.VARIABLE, port_forwarder.ADDRESS_VARIABLE,
}  # fmt: skip

former = pytest.mark.parametrize(("old", "new"), RENAMED.items())


def test_renamed_settings_exist_only_under_their_new_names() -> None:
    assert set(RENAMED.values()) <= PRESENT
    assert not RENAMED.keys() & PRESENT


@former
def test_settings_refuse_a_former_name(monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    monkeypatch.setenv(old, "1")
    with pytest.raises(ValidationError, match=f"{old} was renamed: set {new} instead"):
        Settings()


@former
def test_up_refuses_a_former_name(monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    with pytest.raises(CommandError, match=f"--set: {old} was renamed: set {new} instead"):
        commands._settings([f"{old}=1"])
    monkeypatch.setenv(old, "1")
    with pytest.raises(ValueError, match=f"{old} was renamed: set {new} instead"):
        inherited_environment()


@pytest.mark.parametrize(
    "module",
    ["workers.worker", "workers.dispatcher", "workers.reconciler", "workers.stack.port_forwarder"],
)
def test_each_process_ends_with_the_new_name(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module], cwd=CHECKOUT, capture_output=True, text=True, check=False,
        env=base_environment() | {"VESTRY_DOORS": "5432=postgres:5432"}, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert "VESTRY_DOORS was renamed: set VESTRY_FORWARD instead" in done.stderr


def test_every_former_name_is_listed() -> None:
    with pytest.raises(ValueError, match=r"VESTRY_DEAF_S .*; VESTRY_WINDOW "):
        reject_renamed(["VESTRY_WINDOW", "HOME", "VESTRY_DEAF_S", "VESTRY_SLOTS"])
    reject_renamed(["HOME", "VESTRY_SLOTS"])


def test_former_name_is_refused_in_lower_case() -> None:
    with pytest.raises(ValueError, match="vestry_window was renamed: set VESTRY_HINTS_PER_SLOT"):
        reject_renamed(["vestry_window"])


def test_pairs_are_parsed_and_formatted() -> None:
    assert parse_pairs("openai, llama=http://127.0.0.1/v1?a=b  x=") == {
        "openai": "", "llama": "http://127.0.0.1/v1?a=b", "x": "",
    }  # fmt: skip
    assert parse_pairs(" , ") == {}
    assert parse_pairs(format_pairs({"a": "b=c", "d": ""})) == {"a": "b=c", "d": ""}
    assert [parse_pair(text) for text in ("a", "a=", "a=b=c")] == [
        ("a", None), ("a", ""), ("a", "b=c"),
    ]  # fmt: skip
