"""The embedded stack's private directory: where everything is, its passwords, ports and lock."""

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
"""The checkout these modules were imported from; children start there."""

PORT_RANGE = (20_000, 29_999)
"""Below the ephemeral ranges of Linux (32768) and macOS (49152): an outgoing connection never takes
the port of a server that is being restarted."""


class HomeInUseError(RuntimeError):
    """Another stack is running in this home."""


def default_home() -> Path:
    """`VESTRY_HOME`, or `.vestry/` in the checkout."""
    return Path(os.environ.get("VESTRY_HOME") or CHECKOUT / ".vestry").resolve()


def write_private(path: Path, text: str, owner: tuple[int, int] | None = None) -> None:
    """Write a file of mode 0600 so that a reader sees the old text or the new, never a part.

    Args:
        path: its place.
        text: all of it.
        owner: user and group that it is to belong to, where that is not who writes it.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        if owner is not None:
            # By descriptor: whoever owns the directory could put a link in the file's place.
            os.fchown(descriptor, *owner)
    part.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is none, or only a torn one."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def port_is_free(port: int) -> bool:
    """Whether a server could listen on a loopback port now."""
    with socket.socket() as probe:
        # As the servers do themselves: a port in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class Home:
    """Paths, passwords, ports and the lock of one stack.

    Args:
        path: the directory; made, with what lies in it, by `create`.
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
        """Make the directories. Root's may be passed through on the way to what other accounts own."""
        passed = 0o711 if os.geteuid() == 0 else 0o700
        self.path.mkdir(parents=True, exist_ok=True)
        self.path.chmod(passed)
        for directory, mode in ((self.secrets, 0o700), (self.logs, 0o700), (self.run, passed)):
            directory.mkdir(exist_ok=True)
            directory.chmod(mode)

    def lock(self) -> None:
        """Take the home for this process; the kernel gives it back when the process ends.

        Raises:
            HomeInUseError: somebody else holds it.
        """
        descriptor = os.open(self.run / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            pid = read_json(self.state).get("supervisor", {}).get("pid")
            raise HomeInUseError(
                f"a stack is already running in {self.path}" + (f" (pid {pid})" if pid else "")
            ) from None
        self._lock = descriptor

    def unlock(self) -> None:
        """Give the home back."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def has_password(self, name: str) -> bool:
        """Whether a login's password was ever made."""
        return self._password_path(name).exists()

    def password_file(self, name: str) -> Path:
        """The 0600 file with a login's password, made at random where it is missing."""
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
        """The port remembered under a name, chosen now where there is none."""
        port = read_json(self.path / "ports.json").get(name)
        return port if isinstance(port, int) else self.choose_port(name)

    def settle_port(self, name: str) -> int:
        """Before a server starts: its remembered port, or another where somebody took that one."""
        port = self.port(name)
        return port if port_is_free(port) else self.choose_port(name)

    def choose_port(self, name: str, free: Callable[[int], bool] = port_is_free) -> int:
        """Choose a free port and remember it under a name.

        Raises:
            OSError: two hundred random ports were all taken.
        """
        ports = read_json(self.path / "ports.json")
        low, high = PORT_RANGE
        for _ in range(200):
            port = low + secrets.randbelow(high - low + 1)
            if port not in ports.values() and free(port):
                ports[name] = port
                write_private(self.path / "ports.json", json.dumps(ports))
                return port
        raise OSError("no free port found on 127.0.0.1")
