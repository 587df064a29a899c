"""Accounts of a stack's processes, process directories, and mount namespaces for closed directories."""

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
def closed(tmp_path: Path) -> Path:
    """A directory closed to other accounts, with a path that a process needs and one it does not."""
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_mode & stat.S_IXOTH == 0:
            parent.chmod(0o711)
    closed = tmp_path / "closed"
    for path in (closed / "needed" / "lib", closed / "secret"):
        path.mkdir(parents=True)
        (path / "file").write_text("here")
    closed.chmod(0o700)
    return closed


def test_closed_directories_are_detected_with_the_paths_below(closed: Path) -> None:
    needed = [closed / "needed" / "lib", closed / "needed", Path("/usr/bin")]
    assert mount_namespace.forbidden_directories(needed) == {closed: (closed / "needed",)}
    assert mount_namespace.forbidden_directories([Path("/usr/bin")]) == {}


@as_root
def test_process_reads_only_the_paths_it_needs(closed: Path) -> None:
    views = mount_namespace.forbidden_directories([closed / "needed" / "lib"])
    account = Account(NUMBERS[0], NUMBERS[0], views)
    try:
        account.run(["true"])
    except (OSError, subprocess.SubprocessError):
        pytest.skip("this root may not mount")

    def can_read(path: Path) -> bool:
        return account.run(["cat", str(path)], capture_output=True).returncode == 0

    assert can_read(closed / "needed" / "lib" / "file")
    assert not can_read(closed / "secret" / "file")
    assert not Account(NUMBERS[0], NUMBERS[0]).can_enter(closed / "needed")
    # The namespace is the process's own.
    assert (closed / "secret" / "file").read_text() == "here"


@as_root
def test_each_role_has_its_own_number_and_keeps_it() -> None:
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
def test_missing_isolation_has_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    with temporary_home() as path:
        home = Home(path)
        home.create()
        off = Accounts(home, "off")
        assert (off.isolated, off.why_not, off.account_of("private")) == (
            False,
            "VESTRY_ISOLATION=off",
            Account(),
        )
        with pytest.raises(ValueError, match="auto or off"):
            Accounts(home, "one")
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        assert not Accounts(home).isolated


@as_root
def test_only_its_account_reads_a_process_dir_and_its_copies_of_secrets() -> None:
    with temporary_home() as path:
        home = Home(path)
        home.create()
        account, other = (Account(number, number) for number in (NUMBERS[0], NUMBERS[1]))
        directory = ProcessDir(home, "private-bulk-gpu", account)
        directory.prepare()
        variables = directory.copy_secrets(
            {
                "VESTRY_DATABASE_PASSWORD_FILE": str(home.password_file("postgres.vestry_private")),
                "VESTRY_BACKEND_KEYS": f"llama={home.password_file('llama')}",
                "TMPDIR": "/tmp",  # noqa: S108
                "HOME": "/root",
            }
        )
        key_file = variables["VESTRY_BACKEND_KEYS"].split("=")[1]
        for file in (variables["VESTRY_DATABASE_PASSWORD_FILE"], key_file):
            assert account.run(["cat", file], capture_output=True).stdout
            assert other.run(["cat", file], capture_output=True).returncode
        # It cannot read the originals.
        for secret in (home.password_file("llama"), home.keyring):
            assert account.run(["cat", str(secret)], capture_output=True).returncode
        assert {variables["TMPDIR"], variables["HOME"]} == {str(directory.path)}


@as_root
def test_link_in_a_process_dir_is_not_followed(tmp_path: Path) -> None:
    """The directory's account can create one there; root must not write or chown through it."""
    with temporary_home() as path:
        home = Home(path)
        home.create()
        account = Account(NUMBERS[0], NUMBERS[0])
        directory = ProcessDir(home, "cloud", account)
        directory.prepare()
        target = tmp_path / "shadow"
        target.write_text("root's")
        for name in ("secret", "ready"):
            account.run(["ln", "-s", str(target), str(directory.path / name)])
        directory.prepare()
        directory.write("secret", "copy")
        assert target.read_text() == "root's"
        assert target.stat().st_uid == 0
        assert not directory.ready.exists()
