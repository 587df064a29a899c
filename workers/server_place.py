"""Where the embedded servers' files may lie: their account must be able to reach them.

Run as root, the servers are another account, which may be shut out of the checkout (a 0700 parent)
or of the virtual environment. Data then goes to a place of the system's, programs are copied there.
"""

from __future__ import annotations

import hashlib
import os
import shutil
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

    def program(self, package: Path, executable: str, version: str) -> Path:
        """The path of a program that the account can run, copied with its package if need be.

        Args:
            package: the directory that must stay together (binaries, libraries, data).
            executable: the program's path in it.
            version: tells copies of different releases apart.
        """
        if self.account.uid is None or self._runs(package / executable):
            return package / executable
        copy = self._copies / f"{package.name}-{version}"
        if not copy.exists():
            self._copies.mkdir(mode=0o755, exist_ok=True)
            part = copy.with_name(f"{copy.name}.{os.getpid()}")
            shutil.copytree(package, part, symlinks=True)
            part.chmod(0o755)
            part.replace(copy)
        return copy / executable

    def _runs(self, executable: Path) -> bool:
        try:
            done = self.account.run([str(executable), "--version"], capture_output=True)
        except PermissionError:
            return False
        return done.returncode == 0


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
