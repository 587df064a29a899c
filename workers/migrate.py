"""`python -m workers.migrate`: roles, extension and schema of a database that is not embedded.

Run it before the first start and after every update. It is idempotent, and the only process that
needs an administrator's login. From the environment:

* `VESTRY_ADMIN_URL`: a login that may create roles and the extension, naming the database, such as
  `postgresql://postgres@host/vestry`;
* `VESTRY_ADMIN_PASSWORD_FILE`: a file with its password, where the URL has none;
* `VESTRY_ROLE_SECRETS`: a directory with one file per role, named after it, that holds its password.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import psycopg
from psycopg.conninfo import make_conninfo
from sqlalchemy import URL

from models.bootstrap import ROLES, SCHEMA_OWNER, bootstrap, migrate
from vestry.db.schema_revision import SchemaError


class MissingSettingError(RuntimeError):
    """A variable or a file is missing; the message names it."""


def prepare(admin: str, passwords: Mapping[str, str]) -> None:
    """Create or refresh roles, extension and schema, then migrate as the schema's owner.

    Args:
        admin: libpq connection string of a superuser, password included, naming the database.
        passwords: role name to password, for every name in ROLES.

    Raises:
        SchemaError: pgvector is missing or too old, or the schema is of an unknown revision.
    """
    with psycopg.connect(admin, autocommit=True) as conn:
        bootstrap(conn, passwords)
        owner = URL.create(
            "postgresql+psycopg",
            username=SCHEMA_OWNER,
            password=passwords[SCHEMA_OWNER],
            host=conn.info.host,
            port=conn.info.port,
            database=conn.info.dbname,
        )
    migrate(owner.render_as_string(hide_password=False))


def admin_login(environment: Mapping[str, str]) -> str:
    """The administrator's connection string, with the password from the file if there is one.

    Raises:
        MissingSettingError: VESTRY_ADMIN_URL is not set.
    """
    url = _required(environment, "VESTRY_ADMIN_URL")
    file = environment.get("VESTRY_ADMIN_PASSWORD_FILE")
    return make_conninfo(url, password=_read(Path(file))) if file else url


def role_passwords(environment: Mapping[str, str]) -> dict[str, str]:
    """Every role's password from its file.

    Raises:
        MissingSettingError: VESTRY_ROLE_SECRETS is not set, or a role has no file there.
    """
    directory = Path(_required(environment, "VESTRY_ROLE_SECRETS"))
    return {role: _read(directory / role) for role in ROLES}


def _required(environment: Mapping[str, str], name: str) -> str:
    value = environment.get(name)
    if not value:
        raise MissingSettingError(f"{name} is not set")
    return value


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise MissingSettingError(f"{file} cannot be read ({error.strerror})") from None


def main() -> None:
    """Migrate as the environment says; exit status 1 and one sentence if that fails."""
    try:
        prepare(admin_login(os.environ), role_passwords(os.environ))
    except (MissingSettingError, SchemaError) as error:
        sys.exit(f"migrate: {error}")
    sys.stdout.write("migrate: roles, extension and schema are up to date\n")


if __name__ == "__main__":
    main()
