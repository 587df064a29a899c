"""Temporary files are private to a process, and removed at its end or by the next start."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from inference.temp_dir import TempDir, TempDirError

ROOT = Path(__file__).resolve().parents[2]
HOLDER = """
    import sys
    from pathlib import Path
    from inference.temp_dir import TempDir
    temp_dir = TempDir(Path(sys.argv[1]), "w")
    with temp_dir.file(b"private") as path:
        (temp_dir.new_directory() / "page").write_bytes(b"private")
        print(temp_dir.path, flush=True)
        sys.stdin.read()
"""


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    return tmp_path / "parent"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_files_and_directories_are_private_and_removed_on_close(parent: Path) -> None:
    temp_dir = TempDir(parent, "w")
    with temp_dir.file(b"content") as path:
        assert path.read_bytes() == b"content"
        assert mode(path) == 0o600
        assert mode(temp_dir.new_directory()) == 0o700
    assert not path.exists()
    assert (mode(parent), mode(temp_dir.path)) == (0o700, 0o700)
    temp_dir.close()
    temp_dir.close()
    assert not parent.exists()


def test_process_uses_directory_for_tempfile_and_tmpdir(parent: Path) -> None:
    script = f"""
        import os, tempfile
        from pathlib import Path
        from inference.temp_dir import TempDir
        with TempDir(Path({str(parent)!r}), "private-bulk-cpu@host") as temp_dir:
            temp_dir.use_for_process()
            file = Path(tempfile.mkstemp()[1])
            print(file.parent == temp_dir.path, os.environ["TMPDIR"])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], check=True, cwd=ROOT, env={}, timeout=60,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.split() == ["True", str(parent / "private-bulk-cpu-host")]
    assert not parent.exists()


def test_directory_of_killed_process_is_removed_by_next_start(parent: Path) -> None:
    argv = [sys.executable, "-c", textwrap.dedent(HOLDER), str(parent)]
    with subprocess.Popen(
        argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        path = Path(holder.stdout.readline().strip())
        assert list(path.rglob("page"))
        with TempDir(parent, "w") as second:
            assert second.path != path
        assert list(path.rglob("page")), "the directory of a living process was removed"
        holder.kill()
    assert list(path.rglob("page"))
    (parent / "w.7").mkdir()
    (parent / "w.7" / "file").write_text("of an earlier process")
    kept = {"w.tmp", "w-2", "work", "w.7.txt", "other"}
    for name in kept:
        (parent / name).mkdir()
    with TempDir(parent, "w") as temp_dir:
        assert temp_dir.path == path
        assert {file.name for file in parent.rglob("*")} == {"w", *kept}
    assert not path.exists()


def test_writable_parent_is_refused(parent: Path) -> None:
    parent.mkdir()
    parent.chmod(0o777)
    with pytest.raises(TempDirError, match="0700"):
        TempDir(parent, "w")
    assert list(parent.iterdir()) == []


def test_link_or_parent_of_another_account_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "file").touch()
    for parent in ("link", "file"):
        with pytest.raises(TempDirError):
            TempDir(tmp_path / parent, "w")
    if os.geteuid() == 0:
        os.chown(tmp_path / "real", 65534, 65534)
        with pytest.raises(TempDirError):
            TempDir(tmp_path / "real", "w")


def test_mode_of_an_existing_parent_is_unchanged(parent: Path) -> None:
    parent.mkdir()
    parent.chmod(0o755)
    with TempDir(parent, "w") as temp_dir:
        assert (mode(parent), mode(temp_dir.path)) == (0o755, 0o700)


def test_parent_removed_by_another_process_is_created_again(
    parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mkdir = Path.mkdir
    removals = iter([True, True])

    def racing_mkdir(path: Path, *args: object, **options: object) -> None:
        if path.parent == parent and next(removals, False):
            parent.rmdir()
        mkdir(path, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "mkdir", racing_mkdir)
    with TempDir(parent, "w") as temp_dir:
        assert (mode(parent), mode(temp_dir.path)) == (0o700, 0o700)
