"""Settings of the producer library: the database and the key ring.

They come from arguments, else from `VESTRY_DATABASE_URL` and one of `VESTRY_KEYRING_FILE`,
`VESTRY_KEYRING_COMMAND` and `VESTRY_KEYRING_FD` (see `vestry.crypto.keyring`), else from the embedded
stack's `client.json` in `VESTRY_HOME` (default: `.vestry` here or in a parent directory, else in the
checkout of this module, where `vestry up` keeps it).
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from vestry.crypto.keyring import KeyRing, KeySource, key_source_from_environment
from vestry.crypto.keyring_file import KeyFile
from vestry.errors import SettingsError

CLIENT_FILE = "client.json"

CONNECTION_TIMEOUTS = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
"""TCP settings that detect a lost database host, unless the URL has its own: with the system's
defaults that takes hours."""


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """Settings of a client. Fields are not in its repr: the URL holds a password.

    Attributes:
        conninfo: libpq's connection string.
        keyring: None in a producer of only shareable jobs.
    """

    conninfo: str = field(repr=False)
    keyring: KeyRing | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class OperatorSettings:
    """Settings of an operator. Fields are not in its repr: the URL holds a password.

    Attributes:
        conninfo: libpq's connection string, of the role vestry_operator.
        source: source of the key ring, not read yet.
    """

    conninfo: str = field(repr=False)
    source: KeySource | None = field(repr=False)


def resolve(
    database_url: str | None = None, keyring: KeyRing | str | os.PathLike[str] | None = None
) -> ClientSettings:
    """Find the settings of a client.

    Raises:
        SettingsError: no database is configured, or its settings cannot be read.
        KeyRingError: the configured key ring cannot be used.
    """
    source = None if keyring else key_source_from_environment()
    url = database_url or os.environ.get("VESTRY_DATABASE_URL")
    if not url:
        client_file = _read_client_file()
        url = str(client_file["database_url"])
        if not keyring and source is None and (path := client_file.get("keyring")):
            source = KeyFile(str(path))
    if isinstance(keyring, KeyRing):
        return ClientSettings(_conninfo(url), keyring)
    if keyring:
        source = KeyFile(keyring)
    return ClientSettings(_conninfo(url), None if source is None else KeyRing.read(source))


def resolve_operator() -> OperatorSettings:
    """Find the settings of `vestry keys`, `forget` and `audit`: `VESTRY_OPERATOR_URL` or client.json.

    Raises:
        SettingsError: no database is configured, or its settings cannot be read.
        KeyRingError: several key rings are configured, or an invalid one.
    """
    source = key_source_from_environment()
    url = os.environ.get("VESTRY_OPERATOR_URL")
    if not url:
        if os.environ.get("VESTRY_DATABASE_URL"):
            raise SettingsError(
                "no operator login: set VESTRY_OPERATOR_URL to a login of the role vestry_operator"
            )
        client_file = _read_client_file()
        url = str(client_file.get("operator_url") or "")
        if not url:
            raise SettingsError("the embedded stack is older than this command: restart it")
        if source is None and (path := client_file.get("keyring")):
            source = KeyFile(str(path))
    return OperatorSettings(_conninfo(url, "VESTRY_OPERATOR_PASSWORD_FILE"), source)


def home() -> Path:
    """The embedded stack's data directory; it need not exist."""
    configured = os.environ.get("VESTRY_HOME")
    if configured:
        return Path(configured)
    candidates = _home_candidates()
    # A directory left by a stopped stack does not hide the stack that runs in the checkout.
    running = (path for path in candidates if (path / CLIENT_FILE).exists())
    return next(running, candidates[0])


def _home_candidates() -> list[Path]:
    """Possible data directories: those that exist, else the one that would be created."""
    here = Path.cwd()
    checkout = _checkout()
    above = [folder / ".vestry" for folder in (here, *here.parents)]
    candidates = [path for path in above if path.is_dir()]
    if checkout is not None and checkout / ".vestry" not in candidates:
        candidates.append(checkout / ".vestry")
    return candidates or above[:1]


def _checkout() -> Path | None:
    """The checkout that this module was imported from; None for the installed package."""
    folder = Path(__file__).resolve().parent.parent
    return folder if (folder / "workers" / "app.py").is_file() else None


def _read_client_file() -> dict[str, object]:
    try:
        content = json.loads((home() / CLIENT_FILE).read_text(encoding="utf-8"))
        content["database_url"]
    except FileNotFoundError:
        configured = os.environ.get("VESTRY_HOME")
        tried = ", ".join(map(str, [configured] if configured else _home_candidates()))
        raise SettingsError(
            "no database: set VESTRY_DATABASE_URL, or start the embedded stack with `vestry up`; "
            f"none runs in {tried}"
        ) from None
    except PermissionError:
        raise SettingsError(
            "the embedded stack's client.json cannot be read by this user: run as its owner"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        # `from None`: a parser's error may quote a line with a password.
        raise SettingsError(
            "the embedded stack's client.json is malformed: restart the stack"
        ) from None
    checked: dict[str, object] = content
    return checked


def _conninfo(url: str, password_variable: str = "VESTRY_DATABASE_PASSWORD_FILE") -> str:  # noqa: S107
    # libpq does not accept SQLAlchemy's driver names.
    for dialect in ("postgresql+psycopg://", "postgresql+psycopg_async://"):
        if url.startswith(dialect):
            url = "postgresql://" + url.removeprefix(dialect)
    password_file = os.environ.get(password_variable)
    try:
        in_url = conninfo_to_dict(url)
        timeouts = {
            name: value for name, value in CONNECTION_TIMEOUTS.items() if name not in in_url
        }
        conninfo = make_conninfo(url, application_name="vestry", **timeouts)
        if password_file and "password=" not in conninfo:
            password = Path(password_file).read_text(encoding="utf-8").strip()
            conninfo = make_conninfo(conninfo, password=password)
    except psycopg.Error:
        raise SettingsError("the database URL is malformed; it must be postgresql://…") from None
    except OSError:
        raise SettingsError(f"the password file in {password_variable} cannot be read") from None
    return conninfo
