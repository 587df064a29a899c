"""Home: the embedded stack's data directory, with its paths, passwords, ports and lock."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent
"""The checkout of these modules; working directory of child processes."""

PORT_RANGE = (20_000, 29_999)
"""Below the ephemeral ranges of Linux (32768) and macOS (49152): no outgoing connection takes the port
of a server during its restart."""


class HomeInUseError(RuntimeError):
    """Another stack runs in this home."""


def default_home() -> Path:
    """`VESTRY_HOME`, or `.vestry/` in the checkout."""
    return Path(os.environ.get("VESTRY_HOME") or CHECKOUT / ".vestry").resolve()


def write_private(path: Path, text: str, owner: tuple[int, int] | None = None) -> None:
    """Write a file of mode 0600 atomically.

    Args:
        path: of the file.
        text: its content.
        owner: user and group id of the file; None for those of this process.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        if owner is not None:
            # By descriptor: the directory's owner could replace the path by a link.
            os.fchown(descriptor, *owner)
    part.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if the file is missing or incomplete."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def port_is_free(port: int) -> bool:
    """Whether a server could listen on a loopback port now."""
    with socket.socket() as probe:
        # As the servers themselves: a port in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class Home:
    """Paths, passwords, ports and the lock of one stack.

    Args:
        path: the directory; `create` creates it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.secrets = self.path / "secrets"
        self.logs = self.path / "logs"
        self.run = self.path / "run"
        self.keyring = self.path / "keyring.json"
        self.client = self.path / "client.json"
        self.state = self.run / "state.json"
        self._lock: int | None = None

    def create(self) -> None:
        """Create the directories. Root's are traversable: other accounts own directories below them."""
        traversable = 0o711 if os.geteuid() == 0 else 0o700
        self.path.mkdir(parents=True, exist_ok=True)
        self.path.chmod(traversable)
        for directory, mode in ((self.secrets, 0o700), (self.logs, 0o700), (self.run, traversable)):
            directory.mkdir(exist_ok=True)
            directory.chmod(mode)

    def lock(self) -> None:
        """Lock the home for this process, at most until it ends.

        Raises:
            HomeInUseError: another process holds the lock.
        """
        descriptor = os.open(self.run / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            pid = read_json(self.state).get("supervisor", {}).get("pid")
            owner = f" (pid {pid})" if pid else ""
            raise HomeInUseError(
                f"a stack is already running in {self.path}{owner}; stop it first"
            ) from None
        self._lock = descriptor

    def unlock(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def has_password(self, name: str) -> bool:
        """Whether a login has a password file."""
        return self._password_path(name).exists()

    def password_file(self, name: str) -> Path:
        """The 0600 file with a login's password, created with a random one if it is missing."""
        path = self._password_path(name)
        if not path.exists():
            write_private(path, secrets.token_urlsafe(32))
        return path

    def password(self, name: str) -> str:
        """A login's password."""
        return self.password_file(name).read_text(encoding="utf-8").strip()

    def _password_path(self, name: str) -> Path:
        return self.secrets / f"{name}.password"

    def port(self, name: str) -> int:
        """The recorded port of a server; chosen now if there is none."""
        port = read_json(self.path / "ports.json").get(name)
        return port if isinstance(port, int) else self.choose_port(name)

    def settle_port(self, name: str) -> int:
        """The port for a server about to start: the recorded one if it is free, else a new one."""
        port = self.port(name)
        return port if port_is_free(port) else self.choose_port(name)

    def choose_port(self, name: str, free: Callable[[int], bool] = port_is_free) -> int:
        """Choose a free port for a server and record it.

        Raises:
            OSError: none of two hundred random ports is free.
        """
        ports = read_json(self.path / "ports.json")
        low, high = PORT_RANGE
        for _ in range(200):
            port = low + secrets.randbelow(high - low + 1)
            if port not in ports.values() and free(port):
                ports[name] = port
                write_private(self.path / "ports.json", json.dumps(ports))
                return port
        raise OSError(
            f"no free port on 127.0.0.1: 200 random ones from {low} to {high} are in use; free some"
        )
