"""The look at the end of a run finds what it is for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests import leak_check
from tests.waiting import eventually
from workers.stack.server_dir import OWNER

ORPHAN = """
import os, subprocess, sys
child = subprocess.Popen(["sleep", "60"], cwd=sys.argv[1], start_new_session=True,
                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                         env=dict(a.split("=") for a in sys.argv[2:]))
print(child.pid)
"""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leak_check, "ENDING_S", 0.2)


def orphan(cwd: Path, *environment: str) -> int:
    """A process whose parent has ended."""
    done = subprocess.run(
        [sys.executable, "-c", ORPHAN, str(cwd), *environment],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return int(done.stdout)


@pytest.fixture(params=["directory", "environment"])
def left(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[int]:
    by_directory = request.param == "directory"
    pid = orphan(tmp_path, "A=1") if by_directory else orphan(Path("/"), f"TMPDIR={tmp_path}")
    yield pid
    if psutil.pid_exists(pid):
        os.kill(pid, signal.SIGKILL)


def found(root: Path) -> set[int]:
    """Among them, in a whole run, the servers that other tests share."""
    return {process.pid for process in leak_check.processes(root)}


def test_orphan_is_found_until_it_ends(left: int, tmp_path: Path) -> None:
    assert left in found(tmp_path)
    os.kill(left, signal.SIGKILL)
    eventually(lambda: left not in found(tmp_path))


def test_child_is_found_wherever_it_runs(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"], cwd="/", env={}) as child:
        assert child.pid in found(tmp_path)
        child.kill()


def test_place_is_found_by_its_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leak_check, "SYSTEM_DIRS", (tmp_path,))
    for name, home in (("vestry-a", tmp_path / "tests" / "home"), ("vestry-b", Path("/else"))):
        (tmp_path / name).mkdir()
        (tmp_path / name / OWNER).write_text(json.dumps({"home": str(home)}), encoding="utf-8")
    assert leak_check.server_dirs(tmp_path / "tests") == [tmp_path / "vestry-a"]
