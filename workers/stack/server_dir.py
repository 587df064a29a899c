"""Server directories: data and programs of the embedded servers, where their account can reach them.

If the caller is root, the servers run under another account, which may have no access to the checkout
(a 0700 parent) or to the virtual environment. Their data is then in a system directory, and programs
are copied there.

Home and system directory name each other, by a file in each. A moved home keeps its data; a copy of it,
or a new home at its path, never gets another's; a directory without a home can be detected.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from workers.home import Home, read_json, write_private
from workers.stack.process import Account, server_account

SYSTEM_DIRS = (Path("/var/lib"), Path("/var/tmp"))  # noqa: S108 - a new 0711 directory of root's in it
PREFIX = "vestry-"
RECORD = "servers.json"
"""File in a home that names its system directory; absent if the data is in the home."""
OWNER = "home.json"
"""File in a system directory that names its home."""
REMOVAL_S = 10.0
"""How long a removal is repeated while servers are still ending."""


class ServerDir:
    """One server's directory, and the account that owns it.

    Args:
        home: the stack's home.
        name: the server's name; names the directory too.
    """

    def __init__(self, home: Home, name: str) -> None:
        root = _root(home)
        self.path = root / name
        self.account: Account = server_account(self.path)
        self.path.mkdir(exist_ok=True)
        self.account.own(self.path)
        self.path.chmod(0o700)
        self._copies = root / "programs"

    def write(self, name: str, text: str) -> Path:
        """Write a 0600 file that the server's account owns."""
        path = self.path / name
        write_private(path, text, self.account.ids)
        return path

    def program(self, package: str, distribution: str, executable: Path) -> Path:
        """Path of a program that the account can run; the package is copied if necessary.

        Args:
            package: the installed Python package that contains it.
            distribution: that package's name in pip; a copy is named for it and its version.
            executable: the program's path in the package.

        Raises:
            RuntimeError: the package is not installed.
        """
        source = package_directory(package)
        if self.account.uid is None or self._runs(source / executable):
            return source / executable
        copy = self._copies / f"{distribution}-{version(distribution)}"
        if not copy.exists():
            self._copies.mkdir(mode=0o755, exist_ok=True)
            part = copy.with_name(f"{copy.name}.{os.getpid()}")
            # Linux wheels have their shared libraries in a sibling directory, which the programs find
            # by a relative path.
            for directory in (source, source.with_name(f"{package}.libs")):
                if directory.is_dir():
                    shutil.copytree(directory, part / directory.name, symlinks=True)
            part.chmod(0o755)
            part.replace(copy)
        return copy / package / executable

    def _runs(self, executable: Path) -> bool:
        try:
            done = self.account.run([str(executable), "--version"], capture_output=True)
        except PermissionError:
            return False
        return done.returncode == 0


def package_directory(package: str) -> Path:
    """Directory of an installed package, which is not imported.

    Raises:
        RuntimeError: it is not installed.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError(f"{package} is not installed: run `make setup`")
    return Path(spec.submodule_search_locations[0])


def orphans() -> dict[Path, str]:
    """System directories of root whose home no longer names them, each with that home.

    They are not removed automatically: the home may be on a disk that is not mounted.
    """
    if os.geteuid() != 0:
        return {}
    homes = {}
    for path in (p for base in SYSTEM_DIRS for p in sorted(base.glob(f"{PREFIX}*"))):
        # Another stack may remove its own meanwhile.
        with contextlib.suppress(FileNotFoundError):
            home = read_json(path / OWNER).get("home")
            if home and _recorded_dir(Path(home)) != path and path.stat().st_uid == 0:
                homes[path] = str(home)
    return homes


def remove(home: Path) -> None:
    """Remove a home with its servers' data, in the home or in a system directory.

    Raises:
        OSError: something in it cannot be removed, or a server still runs in it.
    """
    for path in (_system_dir(Home(home)), home):
        until = time.monotonic() + REMOVAL_S
        while path is not None and path.exists():
            try:
                shutil.rmtree(path)
            except OSError:
                # A server that is ending may still remove or add files.
                if time.monotonic() > until:
                    raise
                time.sleep(0.1)


def _root(home: Home) -> Path:
    """The home if the servers' account can enter it, else the home's system directory."""
    if path := _system_dir(home):
        return path
    if server_account(home.path).can_enter(home.path):
        return home.path
    for base in SYSTEM_DIRS:
        if not base.is_dir() or not os.access(base, os.W_OK):
            continue
        path = base / f"{PREFIX}{secrets.token_hex(8)}"
        path.mkdir()
        path.chmod(0o711)
        _write(path / OWNER, {"home": str(home.path)})
        _write(home.path / RECORD, {"place": str(path)})
        return path
    bases = ", ".join(map(str, SYSTEM_DIRS))
    raise OSError(
        f"the servers' account can enter neither {home.path} nor any of {bases}: "
        "set VESTRY_HOME to a directory that every account can enter"
    )


def _system_dir(home: Home) -> Path | None:
    """The system directory of a home; None if it has none, or is a copy of the one that has it."""
    path = _recorded_dir(home.path)
    if path is None or not path.is_dir() or path.stat().st_uid != os.geteuid():
        return None
    owner = read_json(path / OWNER).get("home")
    if owner != str(home.path):
        if owner is None or _recorded_dir(Path(owner)) == path:
            return None
        _write(path / OWNER, {"home": str(home.path)})
    return path


def _recorded_dir(home: Path) -> Path | None:
    path = read_json(home / RECORD).get("place")
    return Path(path) if path else None


def _write(path: Path, document: dict[str, str]) -> None:
    write_private(path, json.dumps(document) + "\n")
