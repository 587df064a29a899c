"""Process directories: a directory per process in a stack's home, with its ready file and secrets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from workers.home import Home, write_private
from workers.setting_names import format_pairs, parse_pairs
from workers.stack.process import Account

SECRET_FILE_VARS: Final = (
    "VESTRY_DATABASE_PASSWORD_FILE",
    "VESTRY_BROKER_PASSWORD_FILE",
    "VESTRY_LLAMA_KEY_FILE",
)
"""Variables that name a file with a secret."""
SECRET_FILE_PAIR_VARS: Final = "VESTRY_BACKEND_KEYS"  # noqa: S105 - a variable's name
"""Variable that names several, as `name=FILE`."""


class ProcessDir:
    """The directory `run/NAME` of a home, mode 0700.

    Args:
        home: created.
        name: the process's.
        account: the process's. If it is not the caller's, it cannot read the home's secrets, and gets
            copies.
    """

    def __init__(self, home: Home, name: str, account: Account) -> None:
        self.path = home.run / name
        self.ready = self.path / "ready"
        self._account = account

    def prepare(self) -> None:
        """Create it, and remove the ready file, before a start of the process."""
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
        """The environment, with copies of its secret files and with HOME and TMPDIR in this directory.

        Unchanged if the process runs under the caller's account.

        Raises:
            OSError: a secret file is missing.
        """
        if self._account.uid is None:
            return dict(environment)
        result = dict(environment)
        for name in SECRET_FILE_VARS:
            if name in result:
                result[name] = str(self._copy(Path(result[name])))
        if pairs := result.get(SECRET_FILE_PAIR_VARS):
            result[SECRET_FILE_PAIR_VARS] = format_pairs(
                {name: str(self._copy(Path(file))) for name, file in parse_pairs(pairs).items()}
            )
        cache = Path(
            result.get("HF_HOME") or Path(result.get("HOME", "/")) / ".cache" / "huggingface"
        )
        if cache.is_dir():
            result["HF_HOME"] = str(cache)
        result |= {"HOME": str(self.path), "USER": "vestry"}
        if "TMPDIR" in result:
            result["TMPDIR"] = str(self.path)
        return result

    def _copy(self, secret: Path) -> Path:
        return self.write(secret.name, secret.read_text(encoding="utf-8"))
