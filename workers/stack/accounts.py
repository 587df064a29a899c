"""The embedded stack's processes under operating-system accounts of their own, one a privacy class.

The accounts need not exist: each is a number that nobody else has. So a process can read neither the
files nor the memory of another class's, nor the key ring. It takes root to start it so; else all run as
whoever started the stack, and `vestry doctor` says so.
"""

from __future__ import annotations

import json
import os
import pwd
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Final

from workers.home import CHECKOUT, Home, read_json, write_private
from workers.stack import mount_namespace
from workers.stack.process import Account, base_environment

SETTING: Final = "VESTRY_ISOLATION"
"""`auto`, or `off` to run everything under one account."""
ROLES: Final = (
    "private", "shareable", "cloud", "control", "models", "flower-private", "flower-shareable",
)  # fmt: skip
NUMBERS: Final = range(60_706, 61_184 - len(ROLES))
"""Numbers that no system gives to anybody (systemd, "Users, Groups, UIDs and GIDs", summary)."""
RECORD: Final = "accounts.json"
TRIAL_TIMEOUT_S: Final = 30.0


class Accounts:
    """Who runs what.

    Args:
        home: created and locked.
        setting: value of VESTRY_ISOLATION.
        needed: files and directories that workers must be able to read, besides the code.

    Attributes:
        apart: whether each role has an account of its own.
        why_not: the reason where it has not.
    """

    def __init__(self, home: Home, setting: str = "auto", needed: tuple[Path, ...] = ()) -> None:
        self._home = home
        self._numbers: dict[str, int] = {}
        self._views: dict[Path, tuple[Path, ...]] = {}
        self.why_not = self._reason(setting, needed)
        self.isolated = not self.why_not

    def account_of(self, role: str) -> Account:
        """A role's account; the caller's own where they are not apart."""
        if not self.isolated:
            return Account()
        number = self._numbers[role]
        return Account(number, number, self._views)

    def _reason(self, setting: str, needed: tuple[Path, ...]) -> str:
        """Why processes cannot have accounts of their own; empty where they can."""
        if setting not in {"auto", "off"}:
            raise ValueError(f"{SETTING} is auto or off")
        if setting == "off":
            return f"{SETTING}=off"
        if os.geteuid() != 0:
            return "only root can start processes under other accounts"
        if os.environ.get("HF_HUB_OFFLINE") == "0":
            return "with HF_HUB_OFFLINE=0 models are fetched into this account's own cache"
        self._numbers = _numbers(self._home)
        prefixes = (Path(sys.base_prefix), Path(sys.prefix), CHECKOUT, self._home.path)
        there = tuple(path for path in needed if path.exists())
        try:
            self._views = mount_namespace.forbidden_directories((*prefixes, *there))
            self._try()
        except (OSError, subprocess.SubprocessError):
            return "other accounts cannot run this Python or read this checkout"
        return ""

    def _try(self) -> None:
        """Run what every process needs, as one of the accounts."""
        number = self._numbers["control"]
        account = Account(number, number, self._views)
        subprocess.run(  # type: ignore[call-overload]
            [sys.executable, "-c", "import psutil, workers.stack.process"],
            cwd=CHECKOUT,
            env=base_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
            timeout=TRIAL_TIMEOUT_S,
            **account.popen_options(),
        )


def _numbers(home: Home) -> dict[str, int]:
    """The numbers this home has, chosen once: its workers' files belong to them."""
    known = read_json(home.path / RECORD).get("first")
    if not isinstance(known, int) or known not in NUMBERS:
        known = next(
            first
            for first in (secrets.choice(NUMBERS) for _ in iter(int, 1))
            if not any(_uid_is_used(first + place) for place in range(len(ROLES)))
        )
        write_private(home.path / RECORD, json.dumps({"first": known}))
    return {role: known + place for place, role in enumerate(ROLES)}


def _uid_is_used(number: int) -> bool:
    try:
        pwd.getpwuid(number)
    except KeyError:
        return False
    return True
