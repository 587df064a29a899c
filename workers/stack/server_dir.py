"""Where the embedded servers' files may lie: their account must be able to reach them.

Run as root, the servers are another account, which may be shut out of the checkout (a 0700 parent)
or of the virtual environment. Data then goes to a place of the system's, programs are copied there.

Home and place name each other, by a file in each. So a home that was moved keeps its data, a copy
of it or a new one at its path meets nobody else's, and a place whose home is gone can be told.
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
"""In a home: its place. Absent where the data lies in the home itself."""
OWNER = "home.json"
"""In a place: its home."""
REMOVAL_S = 10.0
"""For servers still ending when their home is removed."""


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
        """The path of a program that the account can run, copied with its package if need be.

        Args:
            package: the installed Python package that carries it.
            distribution: that package's name to pip; its version tells copies apart.
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
            # Wheels built for Linux keep their shared libraries in a sibling of the package, where
            # the programs look for them by a relative path.
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
    """Where an installed package lies; it is not imported.

    Raises:
        RuntimeError: it is not installed.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError(f"{package} is not installed; `make setup` brings it")
    return Path(spec.submodule_search_locations[0])


def orphans() -> dict[Path, str]:
    """Places that no home names any more, and whose they were; root's own alone.

    They are for a person to remove: the home may lie on a disk that is not mounted just now.
    """
    if os.geteuid() != 0:
        return {}
    found = {}
    for place in (p for base in SYSTEM_DIRS for p in sorted(base.glob(f"{PREFIX}*"))):
        # Another stack may remove its own meanwhile.
        with contextlib.suppress(FileNotFoundError):
            home = read_json(place / OWNER).get("home")
            if home and _named_by(Path(home)) != place and place.stat().st_uid == 0:
                found[place] = str(home)
    return found


def remove(home: Path) -> None:
    """Remove a home for good, with its servers' data where that lies elsewhere.

    Raises:
        OSError: something in it cannot be removed, or a server in it goes on.
    """
    for path in (_own_dir(Home(home)), home):
        until = time.monotonic() + REMOVAL_S
        while path is not None and path.exists():
            try:
                shutil.rmtree(path)
            except OSError:
                # A server that is just ending takes files away, or adds one.
                if time.monotonic() > until:
                    raise
                time.sleep(0.1)


def _root(home: Home) -> Path:
    """The home where every account concerned can reach it, else the home's own system place."""
    if place := _own_dir(home):
        return place
    if server_account(home.path).can_enter(home.path):
        return home.path
    for base in SYSTEM_DIRS:
        if not base.is_dir() or not os.access(base, os.W_OK):
            continue
        place = base / f"{PREFIX}{secrets.token_hex(8)}"
        place.mkdir()
        place.chmod(0o711)
        _write(place / OWNER, {"home": str(home.path)})
        _write(home.path / RECORD, {"place": str(place)})
        return place
    raise OSError(f"no directory for the servers' data that their account can reach ({home.path})")


def _own_dir(home: Home) -> Path | None:
    """The system place that belongs to a home; None where its data lies within, or is a copy's."""
    place = _named_by(home.path)
    if place is None or not place.is_dir() or place.stat().st_uid != os.geteuid():
        return None
    owner = read_json(place / OWNER).get("home")
    if owner != str(home.path):
        if owner is None or _named_by(Path(owner)) == place:
            return None
        _write(place / OWNER, {"home": str(home.path)})
    return place


def _named_by(home: Path) -> Path | None:
    place = read_json(home / RECORD).get("place")
    return Path(place) if place else None


def _write(path: Path, document: dict[str, str]) -> None:
    write_private(path, json.dumps(document) + "\n")
