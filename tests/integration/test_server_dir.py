"""Server directories outside a home that the servers' account cannot enter: moves, copies, removal."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from tests.cluster_template import copy_cluster, migrated_home
from tests.temp_stack_dir import temporary_home
from vestry.cli.output import Output
from workers.stack import server_dir
from workers.stack.commands import report_orphans
from workers.stack.dev_stack import DevStack
from workers.stack.server_dir import ServerDir, orphans, remove

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root has system directories")


@pytest.fixture
def closed() -> Iterator[Path]:
    """A directory that only root can enter; homes in it are removed with their system directories."""
    with temporary_home() as path:
        copy_cluster(path / "stack")
        yield path
        for home in path.iterdir():
            remove(home)


def run(home: Path, word: str = "") -> tuple[Path, list[str]]:
    """Start the servers, insert a word, stop them. Returns their directory and the earlier words."""
    with DevStack(home) as stack, psycopg.connect(stack.superuser_url) as conn:
        assert psutil.Process(stack.processes[0][0].pid).uids().real != 0
        conn.execute("CREATE TABLE IF NOT EXISTS public.kept (word text)")
        words = [row[0] for row in conn.execute("SELECT word FROM public.kept ORDER BY word")]
        conn.execute("INSERT INTO public.kept VALUES (%s)", [word])
        return stack.postgres.directory.path.parent, words


def test_data_of_a_closed_home_is_outside_and_is_removed_with_it(closed: Path) -> None:
    home = closed / "stack"
    directory, _ = run(home, "kept")
    assert not directory.is_relative_to(closed)
    assert run(home) == (directory, ["kept"])
    assert directory not in orphans()
    remove(home)
    assert not directory.exists()
    assert not home.exists()


def test_directory_removed_during_the_search_is_no_orphan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vestry-removed").mkdir()

    def read(path: Path) -> dict[str, Any]:
        shutil.rmtree(path.parent, ignore_errors=True)
        return {"home": str(tmp_path / "home")}

    monkeypatch.setattr(server_dir, "SYSTEM_DIRS", (tmp_path,))
    monkeypatch.setattr(server_dir, "read_json", read)
    assert orphans() == {}


def test_moved_home_keeps_its_data_and_a_copy_gets_none(closed: Path) -> None:
    directory, _ = run(closed / "stack", "kept")
    shutil.copytree(closed / "stack", closed / "copy")
    other, words = run(closed / "copy")
    assert (other != directory, words) == (True, [])

    (closed / "stack").rename(closed / "moved")
    assert directory in orphans()
    assert run(closed / "moved") == (directory, ["kept"])
    assert directory not in orphans()


def test_new_home_at_the_path_of_a_removed_one_is_empty_and_the_orphan_is_reported(
    closed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = closed / "stack"
    directory, _ = run(home, "kept")
    shutil.rmtree(home)
    assert orphans()[directory] == str(home)
    try:
        other, words = run(home)
        assert (other != directory, words) == (True, [])
        assert orphans()[directory] == str(home)
        report_orphans(Output(as_json=True))
        assert str(directory) in capsys.readouterr().err.replace("\n", "")
    finally:
        shutil.rmtree(directory)


def test_programs_that_the_account_cannot_run_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    # As with a virtual environment below a 0700 directory.
    monkeypatch.setattr(ServerDir, "_runs", lambda *_: False)
    with migrated_home() as home, DevStack(home) as stack:
        names = {psutil.Process(process.pid).exe() for process, _ in stack.processes}
        assert all(name.startswith(str(stack.home / "programs")) for name in names)
