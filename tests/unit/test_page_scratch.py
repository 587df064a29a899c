"""Temporary files are private, and survive nobody: not a kill either."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from inference.temp_dir import Scratch

HOLDER = """
import sys, time
from pathlib import Path
from inference.temp_dir import Scratch
scratch = Scratch(Path(sys.argv[1]))
with scratch.file(b"private") as path:
    (scratch.new_directory() / "page").write_bytes(b"private")
    print(path, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "scratch"


def everything(root: Path) -> set[Path]:
    return set(root.rglob("*"))


def test_files_are_ours_alone_and_go_after_use(root: Path) -> None:
    scratch = Scratch(root)
    with scratch.file(b"content") as path:
        assert path.read_bytes() == b"content"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(scratch.new_directory().stat().st_mode) == 0o700
    assert not path.exists()
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    scratch.close()
    scratch.close()
    assert not root.exists()


def test_what_a_killed_process_left_goes_with_the_next_start(root: Path) -> None:
    argv = [sys.executable, "-c", HOLDER, str(root)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        left = Path(holder.stdout.readline().strip())
        neighbour = Scratch(root)
        assert left.exists(), "a living process was swept away"
        neighbour.close()
        assert left.exists()
        holder.kill()
    assert left.exists()
    (root / "stray").mkdir()
    (root / "stray" / "file").write_text("from before")
    (root / "stray.tmp").write_text("from before")
    scratch = Scratch(root)
    assert {path.name.partition(".")[0] for path in everything(root)} == {scratch.directory.name}
    scratch.close()
    assert not root.exists()


def test_a_directory_that_others_may_write_to_is_not_used(root: Path) -> None:
    root.mkdir()
    root.chmod(0o777)
    with pytest.raises(PermissionError):
        Scratch(root)
    assert everything(root) == set()
