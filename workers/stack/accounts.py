"""Operating-system accounts of the embedded stack's processes: one for each role.

The accounts need no entry in the user database: each is an unused number. A process can then read
neither the files nor the memory of another role's, nor the key ring. Only root can do this;
otherwise all run under the caller's account, and `vestry doctor` reports that.
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
"""Numbers that no system assigns (systemd, "Users, Groups, UIDs and GIDs", summary)."""
RECORD: Final = "accounts.json"
TRIAL_TIMEOUT_S: Final = 30.0


class Accounts:
    """The account of each role.

    Args:
        home: created and locked.
        setting: value of VESTRY_ISOLATION.
        needed: files and directories that workers must be able to read, besides the code.

    Attributes:
        isolated: whether each role has its own account.
        why_not: the reason if it has not.
    """

    def __init__(self, home: Home, setting: str = "auto", needed: tuple[Path, ...] = ()) -> None:
        self._home = home
        self._numbers: dict[str, int] = {}
        self._views: dict[Path, tuple[Path, ...]] = {}
        self.why_not = self._reason(setting, needed)
        self.isolated = not self.why_not

    def account_of(self, role: str) -> Account:
        """A role's account; the caller's if roles are not isolated."""
        if not self.isolated:
            return Account()
        number = self._numbers[role]
        return Account(number, number, self._views)

    def _reason(self, setting: str, needed: tuple[Path, ...]) -> str:
        """Why roles cannot have their own accounts; empty if they can."""
        if setting not in {"auto", "off"}:
            raise ValueError(f"{SETTING} must be auto or off")
        if setting == "off":
            return f"{SETTING}=off"
        if os.geteuid() != 0:
            return "only root can start processes under other accounts"
        if os.environ.get("HF_HUB_OFFLINE") == "0":
            return "with HF_HUB_OFFLINE=0 models are downloaded into this account's own cache"
        self._numbers = _numbers(self._home)
        prefixes = (Path(sys.base_prefix), Path(sys.prefix), CHECKOUT, self._home.path)
        existing = tuple(path for path in needed if path.exists())
        try:
            self._views = mount_namespace.forbidden_directories((*prefixes, *existing))
            self._try()
        except (OSError, subprocess.SubprocessError):
            return "other accounts cannot run this Python or read this checkout"
        return ""

    def _try(self) -> None:
        """Check that one of the accounts can run this Python and import the code; raises if not."""
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
    """Each role's number in this home, chosen once: the accounts own files."""
    first = read_json(home.path / RECORD).get("first")
    if not isinstance(first, int) or first not in NUMBERS:
        first = next(
            candidate
            for candidate in (secrets.choice(NUMBERS) for _ in iter(int, 1))
            if not any(_uid_is_used(candidate + offset) for offset in range(len(ROLES)))
        )
        write_private(home.path / RECORD, json.dumps({"first": first}))
    return {role: first + offset for offset, role in enumerate(ROLES)}


def _uid_is_used(number: int) -> bool:
    try:
        pwd.getpwuid(number)
    except KeyError:
        return False
    return True
