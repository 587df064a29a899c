"""Processes of a stack under accounts of their own, wherever root's Python lies."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from tests.temp_stack_dir import temporary_home
from workers.home import Home
from workers.stack import mount_namespace
from workers.stack.accounts import NUMBERS, ROLES, Accounts
from workers.stack.process import Account
from workers.stack.process_dir import ProcessDir

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root starts processes as others")


@pytest.fixture
def shut(tmp_path: Path) -> Path:
    """A directory that others may not pass through, with what a process needs and what it does not."""
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_mode & stat.S_IXOTH == 0:
            parent.chmod(0o711)
    shut = tmp_path / "shut"
    for path in (shut / "needed" / "lib", shut / "secret"):
        path.mkdir(parents=True)
        (path / "file").write_text("here")
    shut.chmod(0o700)
    return shut


def test_what_lies_behind_a_shut_door_is_found(shut: Path) -> None:
    needed = [shut / "needed" / "lib", shut / "needed", Path("/usr/bin")]
    assert mount_namespace.forbidden_directories(needed) == {shut: (shut / "needed",)}
    assert mount_namespace.forbidden_directories([Path("/usr/bin")]) == {}


@as_root
def test_a_process_sees_what_it_needs_and_nothing_else(shut: Path) -> None:
    views = mount_namespace.forbidden_directories([shut / "needed" / "lib"])
    account = Account(NUMBERS[0], NUMBERS[0], views)
    try:
        account.run(["true"])
    except (OSError, subprocess.SubprocessError):
        pytest.skip("this root may not mount")

    def sees(path: Path) -> bool:
        return account.run(["cat", str(path)], capture_output=True).returncode == 0

    assert sees(shut / "needed" / "lib" / "file")
    assert not sees(shut / "secret" / "file")
    assert not Account(NUMBERS[0], NUMBERS[0]).can_enter(shut / "needed")
    # Only that process: ours is as it was.
    assert (shut / "secret" / "file").read_text() == "here"


@as_root
def test_each_role_has_a_number_of_its_own_and_keeps_it() -> None:
    with temporary_home() as path:
        home = Home(path)
        home.create()
        accounts = Accounts(home)
        assert accounts.isolated, accounts.why_not
        numbers = [accounts.account_of(role).uid for role in ROLES]
        assert len(set(numbers)) == len(ROLES)
        assert 0 not in numbers
        again = Accounts(home)
        assert [again.account_of(role).uid for role in ROLES] == numbers


@as_root
def test_one_account_is_said_to_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with temporary_home() as path:
        home = Home(path)
        home.create()
        one = Accounts(home, "one")
        assert (one.isolated, one.why_not, one.account_of("private")) == (
            False,
            "VESTRY_ACCOUNTS=one",
            Account(),
        )
        with pytest.raises(ValueError, match="auto or one"):
            Accounts(home, "several")
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        assert not Accounts(home).isolated


@as_root
def test_a_room_is_its_account_s_alone_with_the_secrets_lent() -> None:
    with temporary_home() as path:
        home = Home(path)
        home.create()
        mine, other = (Account(number, number) for number in (NUMBERS[0], NUMBERS[1]))
        room = ProcessDir(home, "private-bulk-gpu", mine)
        room.prepare()
        lent = room.copy_secrets(
            {
                "VESTRY_DATABASE_PASSWORD_FILE": str(home.password_file("postgres.vestry_private")),
                "VESTRY_BACKEND_KEYS": f"llama={home.password_file('llama')}",
                "TMPDIR": "/tmp",  # noqa: S108
                "HOME": "/root",
            }
        )
        files = [lent["VESTRY_DATABASE_PASSWORD_FILE"], lent["VESTRY_BACKEND_KEYS"].split("=")[1]]
        for file in files:
            assert mine.run(["cat", file], capture_output=True).stdout
            assert other.run(["cat", file], capture_output=True).returncode
        # What they are copies of, neither reads.
        for secret in (home.password_file("llama"), home.keyring):
            assert mine.run(["cat", str(secret)], capture_output=True).returncode
        assert {lent["TMPDIR"], lent["HOME"]} == {str(room.path)}


@as_root
def test_a_link_in_a_room_is_not_followed(tmp_path: Path) -> None:
    """Its account could put one there; what root writes, or gives away, is in the room all the same."""
    with temporary_home() as path:
        home = Home(path)
        home.create()
        mine = Account(NUMBERS[0], NUMBERS[0])
        room = ProcessDir(home, "cloud", mine)
        room.prepare()
        target = tmp_path / "shadow"
        target.write_text("root's")
        for name in ("secret", "ready"):
            mine.run(["ln", "-s", str(target), str(room.path / name)])
        room.prepare()
        room.write("secret", "lent")
        assert target.read_text() == "root's"
        assert target.stat().st_uid == 0
        assert not room.ready.exists()
