"""An error in the supervisor's own check is reported once, and ends no process."""

from __future__ import annotations

from pathlib import Path

import pytest

from workers.home import Home
from workers.stack.supervisor import Supervisor


def test_incomplete_key_ring_is_reported_once_and_ends_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = ["not a ring yet", "not a ring yet", "", "not a ring yet"]

    def watch() -> None:
        if error := errors.pop(0):
            raise OSError(error)

    notes: list[str] = []
    supervisor = Supervisor(Home(tmp_path), [], watch=watch, notify=notes.append)
    monkeypatch.setattr(supervisor.guardian, "ensure", lambda: False)
    for _ in range(4):
        supervisor.tick([])
    assert notes == ["not a ring yet; retrying"] * 2
