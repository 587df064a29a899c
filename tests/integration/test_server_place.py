"""Where the servers' files lie when their account cannot reach the home, and who may remove them."""

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
from workers.stack import commands as up
from workers.stack import server_dir
from workers.stack.dev_stack import DevStack
from workers.stack.server_dir import ServerDir, orphans, remove

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="concerns root alone")


@pytest.fixture
def closed() -> Iterator[Path]:
    """A directory that root alone can enter; what homes in it keep elsewhere goes with them."""
    with temporary_home() as path:
        copy_cluster(path / "stack")
        yield path
        for home in path.iterdir():
            remove(home)


def run(home: Path, word: str = "") -> tuple[Path, list[str]]:
    """Start the servers, write a word, stop them; their place, and all the words there were."""
    with DevStack(home) as stack, psycopg.connect(stack.superuser_url) as conn:
        assert psutil.Process(stack._running[0][0].pid).uids().real != 0
        conn.execute("CREATE TABLE IF NOT EXISTS public.kept (word text)")
        words = [row[0] for row in conn.execute("SELECT word FROM public.kept ORDER BY word")]
        conn.execute("INSERT INTO public.kept VALUES (%s)", [word])
        return stack.postgres.place.path.parent, words


def test_data_out_of_reach_is_kept_outside_and_goes_with_its_home(closed: Path) -> None:
    home = closed / "stack"
    place, _ = run(home, "kept")
    assert not place.is_relative_to(closed)
    assert run(home) == (place, ["kept"])
    assert place not in orphans()
    remove(home)
    assert not place.exists()
    assert not home.exists()


def test_a_place_that_goes_while_it_is_looked_at_is_nobodys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "vestry-gone"
    place.mkdir()

    def read(path: Path) -> dict[str, Any]:
        shutil.rmtree(path.parent, ignore_errors=True)
        return {"home": str(tmp_path / "home")}

    monkeypatch.setattr(server_dir, "SYSTEM_DIRS", (tmp_path,))
    monkeypatch.setattr(server_dir, "read_json", read)
    assert orphans() == {}


def test_a_moved_home_keeps_its_data_and_a_copy_meets_none(closed: Path) -> None:
    place, _ = run(closed / "stack", "kept")
    shutil.copytree(closed / "stack", closed / "copy")
    copys, words = run(closed / "copy")
    assert (copys != place, words) == (True, [])

    (closed / "stack").rename(closed / "moved")
    assert place in orphans()
    assert run(closed / "moved") == (place, ["kept"])
    assert place not in orphans()


def test_a_home_removed_by_hand_is_begun_anew_and_its_data_is_told_of(
    closed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = closed / "stack"
    place, _ = run(home, "left")
    shutil.rmtree(home)
    assert orphans()[place] == str(home)
    try:
        anew, words = run(home)
        assert (anew != place, words) == (True, [])
        assert orphans()[place] == str(home)
        up._tell_orphans(Output(as_json=True))
        assert str(place) in capsys.readouterr().err.replace("\n", "")
    finally:
        shutil.rmtree(place)


def test_programs_out_of_reach_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    # As in a virtual environment below a 0700 directory: nothing runs from where it lies.
    monkeypatch.setattr(ServerDir, "_runs", lambda *_: False)
    with migrated_home() as home, DevStack(home) as stack:
        names = {psutil.Process(process.pid).exe() for process, _ in stack._running}
        assert all(name.startswith(str(stack.home / "programs")) for name in names)
