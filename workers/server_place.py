"""Where the embedded servers' files may lie: their account must be able to reach them.

Run as root, the servers are another account, which may be shut out of the checkout (a 0700 parent)
or of the virtual environment. Data then goes to a place of the system's, programs are copied there.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from workers.home import Home, read_json, write_private
from workers.process import Account, server_account

SYSTEM_PLACES = (Path("/var/lib"), Path("/var/tmp"))  # noqa: S108 - a 0711 directory of root's, refused if another's


class ServerPlace:
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
        write_private(path, text)
        self.account.own(path)
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


def _root(home: Home) -> Path:
    """The home where every account concerned can reach it, else the home's own system place."""
    if server_account(home.path).can_enter(home.path):
        return home.path
    # Named by the home, and recorded with it, so that neither a moved nor a copied home meets
    # another's data.
    tag = hashlib.sha256(str(home.path).encode()).hexdigest()[:16]
    for base in SYSTEM_PLACES:
        place = base / f"vestry-{tag}"
        if not base.is_dir() or not os.access(base, os.W_OK):
            continue
        place.mkdir(mode=0o711, exist_ok=True)
        if place.stat().st_uid != os.geteuid() or place.is_symlink():
            continue
        place.chmod(0o711)
        recorded = home.path / "servers.json"
        if read_json(recorded).get("place") != str(place):
            write_private(recorded, f'{{"place": "{place}"}}\n')
        return place
    raise OSError(f"no directory for the servers' data that their account can reach ({home.path})")
