"""One process's own directory in a stack's home: its readiness, copies of the secrets it is lent."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from workers.environment import format_pairs, parse_pairs
from workers.home import Home, write_private
from workers.stack.process import Account

SECRET_FILE_VARS: Final = (
    "VESTRY_DATABASE_PASSWORD_FILE",
    "VESTRY_BROKER_PASSWORD_FILE",
    "VESTRY_LLAMA_KEY_FILE",
)
"""Variables that name a file with a secret."""
SECRET_FILE_PAIR_VARS: Final = "VESTRY_BACKEND_KEYS"  # noqa: S105 - a variable's name
"""The same, `name=FILE` each."""


class ProcessDir:
    """The directory `run/NAME` of a home, mode 0700.

    Args:
        home: created.
        name: the process's.
        account: whom it runs as. One of its own could not read the home's secrets, and is lent copies.
    """

    def __init__(self, home: Home, name: str, account: Account) -> None:
        self.path = home.run / name
        self.ready = self.path / "ready"
        self._account = account

    def prepare(self) -> None:
        """Make it as it is to be before the process starts."""
        self.path.mkdir(exist_ok=True)
        self.path.chmod(0o700)
        self._account.own(self.path)
        self.ready.unlink(missing_ok=True)

    def write(self, name: str, text: str) -> Path:
        """Write a 0600 file that the process's account owns."""
        path = self.path / name
        write_private(path, text, self._account.ids)
        return path

    def copy_secrets(self, environment: Mapping[str, str]) -> dict[str, str]:
        """The environment, with its secrets where this process can read them, and where it is at home.

        Raises:
            OSError: a secret is not there.
        """
        if self._account.uid is None:
            return dict(environment)
        given = dict(environment)
        for name in SECRET_FILE_VARS:
            if name in given:
                given[name] = str(self._copy(Path(given[name])))
        if pairs := given.get(SECRET_FILE_PAIR_VARS):
            given[SECRET_FILE_PAIR_VARS] = format_pairs(
                {name: str(self._copy(Path(file))) for name, file in parse_pairs(pairs).items()}
            )
        cache = Path(
            given.get("HF_HOME") or Path(given.get("HOME", "/")) / ".cache" / "huggingface"
        )
        if cache.is_dir():
            given["HF_HOME"] = str(cache)
        given |= {"HOME": str(self.path), "USER": "vestry"}
        if "TMPDIR" in given:
            given["TMPDIR"] = str(self.path)
        return given

    def _copy(self, secret: Path) -> Path:
        return self.write(secret.name, secret.read_text(encoding="utf-8"))
