"""The leak check detects orphans, child processes and servers' directories."""

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
def short_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leak_check, "ENDING_S", 0.2)


def start_orphan(cwd: Path, *environment: str) -> int:
    """A process whose parent has ended."""
    done = subprocess.run(
        [sys.executable, "-c", ORPHAN, str(cwd), *environment],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return int(done.stdout)


@pytest.fixture(params=["directory", "environment"])
def orphan(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[int]:
    """An orphan that the check identifies by its working directory, or by its TMPDIR."""
    if request.param == "directory":
        pid = start_orphan(tmp_path, "A=1")
    else:
        pid = start_orphan(Path("/"), f"TMPDIR={tmp_path}")
    yield pid
    if psutil.pid_exists(pid):
        os.kill(pid, signal.SIGKILL)


def detected(root: Path) -> set[int]:
    """Detected processes; in a whole run also the servers that other tests share."""
    return {process.pid for process in leak_check.processes(root)}


def test_orphan_is_detected_until_it_ends(orphan: int, tmp_path: Path) -> None:
    assert orphan in detected(tmp_path)
    os.kill(orphan, signal.SIGKILL)
    eventually(lambda: orphan not in detected(tmp_path))


def test_child_process_is_detected_in_any_directory(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"], cwd="/", env={}) as child:
        assert child.pid in detected(tmp_path)
        child.kill()


def test_server_dir_is_detected_by_its_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leak_check, "SYSTEM_DIRS", (tmp_path,))
    for name, home in (("vestry-a", tmp_path / "tests" / "home"), ("vestry-b", Path("/else"))):
        (tmp_path / name).mkdir()
        (tmp_path / name / OWNER).write_text(json.dumps({"home": str(home)}), encoding="utf-8")
    assert leak_check.server_dirs(tmp_path / "tests") == [tmp_path / "vestry-a"]
