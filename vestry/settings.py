"""Where the database and the key ring are.

Given outright, else by `VESTRY_DATABASE_URL` and one of `VESTRY_KEYRING_FILE`,
`VESTRY_KEYRING_COMMAND` and `VESTRY_KEYRING_FD` (see `vestry.key_source`), else by the embedded
stack's `client.json` in `VESTRY_HOME` (default: `.vestry` here or in a folder above, else in the
checkout this module belongs to, where `vestry up` keeps it).
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from vestry.crypto import keyring_source
from vestry.crypto.keyring import KeyRing
from vestry.errors import SettingsError

CLIENT_FILE = "client.json"

CONNECTION_TIMEOUTS = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
"""What TCP does to notice that the database's machine is gone, unless the URL says otherwise: by the
system's own defaults it takes hours."""


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """What a client needs. Shows nothing of itself: the URL holds a password.

    Attributes:
        conninfo: libpq's connection string.
        keyring: absent in a producer of shareable jobs alone.
    """

    conninfo: str = field(repr=False)
    keyring: KeyRing | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class OperatorSettings:
    """What an operator needs. Shows nothing of itself: the URL holds a password.

    Attributes:
        conninfo: libpq's connection string, of the role vestry_operator.
        source: where the key ring comes from; not read yet.
    """

    conninfo: str = field(repr=False)
    source: keyring_source.KeySource | None = field(repr=False)


def resolve(
    database_url: str | None = None, keyring: KeyRing | str | os.PathLike[str] | None = None
) -> ClientSettings:
    """Find the settings.

    Raises:
        SettingsError: nothing says which database to use, or what says it cannot be read.
        KeyRingError: the key ring is named and cannot be used.
    """
    source = None if keyring else keyring_source.from_environment()
    url = database_url or os.environ.get("VESTRY_DATABASE_URL")
    if not url:
        described = _from_home()
        url = str(described["database_url"])
        if not keyring and source is None and (named := described.get("keyring")):
            source = keyring_source.KeyFile(str(named))
    if isinstance(keyring, KeyRing):
        return ClientSettings(_conninfo(url), keyring)
    if keyring:
        source = keyring_source.KeyFile(keyring)
    return ClientSettings(_conninfo(url), None if source is None else KeyRing.read(source))


def resolve_operator() -> OperatorSettings:
    """Find what `vestry keys`, `forget` and `audit` need, by `VESTRY_OPERATOR_URL` or the stack's file.

    Raises:
        SettingsError: nothing says which database to use, or what says it cannot be read.
        KeyRingError: the key ring is named in a way that cannot be.
    """
    source = keyring_source.from_environment()
    url = os.environ.get("VESTRY_OPERATOR_URL")
    if not url:
        if os.environ.get("VESTRY_DATABASE_URL"):
            raise SettingsError("set VESTRY_OPERATOR_URL, a login of the role vestry_operator")
        described = _from_home()
        url = str(described.get("operator_url") or "")
        if not url:
            raise SettingsError("the embedded stack is older than this command: start it again")
        if source is None and (named := described.get("keyring")):
            source = keyring_source.KeyFile(str(named))
    return OperatorSettings(_conninfo(url, "VESTRY_OPERATOR_PASSWORD_FILE"), source)


def home() -> Path:
    """The embedded stack's directory, whether it exists or not."""
    named = os.environ.get("VESTRY_HOME")
    if named:
        return Path(named)
    places = _places()
    # A stack that ran here once does not hide the one that runs in the checkout.
    running = (place for place in places if (place / CLIENT_FILE).exists())
    return next(running, places[0])


def _places() -> list[Path]:
    """Where a stack may be: directories that exist, or the one that would be made."""
    here = Path.cwd()
    checkout = _checkout()
    above = [folder / ".vestry" for folder in (here, *here.parents)]
    places = [place for place in above if place.is_dir()]
    if checkout is not None and checkout / ".vestry" not in places:
        places.append(checkout / ".vestry")
    return places or above[:1]


def _checkout() -> Path | None:
    """The checkout this module was imported from; the installed package has none."""
    folder = Path(__file__).resolve().parent.parent
    return folder if (folder / "workers" / "app.py").is_file() else None


def _from_home() -> dict[str, object]:
    try:
        described = json.loads((home() / CLIENT_FILE).read_text(encoding="utf-8"))
        described["database_url"]
    except FileNotFoundError:
        named = os.environ.get("VESTRY_HOME")
        tried = ", ".join(map(str, [named] if named else _places()))
        raise SettingsError(
            "no database: set VESTRY_DATABASE_URL, or start the embedded stack with `vestry up`; "
            f"none runs in {tried}"
        ) from None
    except PermissionError:
        raise SettingsError(
            "the embedded stack's client.json cannot be read by this user"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        # `from None`: a parser's error may quote a line with a password.
        raise SettingsError("the embedded stack's client.json is malformed") from None
    found: dict[str, object] = described
    return found


def _conninfo(url: str, password_in: str = "VESTRY_DATABASE_PASSWORD_FILE") -> str:  # noqa: S107
    # SQLAlchemy's way to name the driver is not libpq's.
    for dialect in ("postgresql+psycopg://", "postgresql+psycopg_async://"):
        if url.startswith(dialect):
            url = "postgresql://" + url.removeprefix(dialect)
    password_file = os.environ.get(password_in)
    try:
        told = conninfo_to_dict(url)
        patience = {name: value for name, value in CONNECTION_TIMEOUTS.items() if name not in told}
        conninfo = make_conninfo(url, application_name="vestry", **patience)
        if password_file and "password=" not in conninfo:
            password = Path(password_file).read_text(encoding="utf-8").strip()
            conninfo = make_conninfo(conninfo, password=password)
    except psycopg.Error:
        raise SettingsError("the database URL cannot be read; it is postgresql://…") from None
    except OSError:
        raise SettingsError("the database password file cannot be read") from None
    return conninfo
