"""What befalls the supervisor itself is told once, and ends nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from workers.home import Home
from workers.stack.supervisor import Supervisor


def test_a_key_ring_that_is_just_being_written_ends_no_stack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    troubles = ["not a ring yet", "not a ring yet", "", "not a ring yet"]

    def watch() -> None:
        if trouble := troubles.pop(0):
            raise OSError(trouble)

    told: list[str] = []
    supervisor = Supervisor(Home(tmp_path), [], watch=watch, tell=told.append)
    monkeypatch.setattr(supervisor.keeper, "ensure", lambda: False)
    for _ in range(4):
        supervisor._tick([])
    assert told == ["not a ring yet; trying again"] * 2
