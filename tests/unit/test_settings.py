"""Settings of a process: empty values, and one sentence for each fault."""

from __future__ import annotations

import pytest

from workers.settings import Settings


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
