"""`python -m workers.migrate`: roles, extension and schema of a database that is not embedded.

Run it before the first start and after every update. It is idempotent, concurrent runs wait for each
other, and it is the only process that needs an administrator's login. From the environment:

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
from typing import Any, Final

import psycopg
from psycopg.conninfo import make_conninfo
from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError

from models.bootstrap import ROLES, SCHEMA_OWNER, bootstrap, migrate
from vestry.db.schema_revision import SchemaError


class MissingSettingError(RuntimeError):
    """A variable or a file is missing; the message names it."""


class MigrationError(RuntimeError):
    """The operator must change something; the message says what, without a password."""


MALFORMED: Final = (
    "VESTRY_ADMIN_URL is malformed: use postgresql://USER@HOST/DATABASE, with special characters "
    "percent-encoded"
)


def prepare(admin: str, passwords: Mapping[str, str]) -> None:
    """Create or refresh roles, extension and schema, then migrate as the schema's owner.

    Args:
        admin: libpq connection string of a superuser, password included, naming the database.
        passwords: role name to password, for every name in ROLES.

    Raises:
        SchemaError: pgvector is missing or too old, or the schema is of an unknown revision.
        MigrationError: the operator must change something.
    """
    with _connect(admin) as conn:
        try:
            # Held until the session ends: concurrent runs would fail on each other's objects.
            conn.execute("SELECT pg_advisory_lock(hashtextextended('vestry.migrate', 0))")
            bootstrap(conn, passwords)
        except psycopg.Error as error:
            raise MigrationError(_bootstrap_fault(error)) from None
        owner = URL.create(
            "postgresql+psycopg",
            username=SCHEMA_OWNER,
            password=passwords[SCHEMA_OWNER],
            host=conn.info.host,
            port=conn.info.port,
            database=conn.info.dbname,
        )
        try:
            migrate(owner.render_as_string(hide_password=False))
        except (psycopg.Error, DBAPIError) as error:
            cause = error.orig if isinstance(error, DBAPIError) else error
            raise MigrationError(_migration_fault(cause)) from None


def _connect(admin: str) -> psycopg.Connection[Any]:
    try:
        return psycopg.connect(admin, autocommit=True)
    except psycopg.ProgrammingError:
        raise MigrationError(MALFORMED) from None
    except psycopg.Error as error:
        # libpq's text is not passed on: it quotes parts of the URL, which may be of the password.
        text = str(error)
        if "password" in text:
            fault = "the login of VESTRY_ADMIN_URL was refused: check its user and password"
        elif 'database "' in text and "does not exist" in text:
            fault = "the database of VESTRY_ADMIN_URL does not exist: create it"
        else:
            fault = (
                "cannot connect to the database: check the host, port, user and database of "
                "VESTRY_ADMIN_URL, and that the server accepts connections"
            )
        raise MigrationError(fault) from None


def _bootstrap_fault(error: psycopg.Error) -> str:
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return (
            "the login of VESTRY_ADMIN_URL may not create roles, the extension or the schema: use a "
            "superuser"
        )
    return _common_fault(error)


def _migration_fault(error: BaseException | None) -> str:
    if isinstance(
        error,
        (
            psycopg.errors.DuplicateTable,
            psycopg.errors.DuplicateObject,
            psycopg.errors.DuplicateFunction,
            psycopg.errors.DuplicateSchema,
        ),
    ):
        return (
            "the schema vestry has objects but no table alembic_version with their revision: restore "
            "the table from a backup, or use an empty database"
        )
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return f"{SCHEMA_OWNER} may not change the schema vestry: make it the owner of all objects"
    if isinstance(error, psycopg.errors.LockNotAvailable):
        return "a table is in use by another session: stop the workers, then migrate again"
    return _common_fault(error)


def _common_fault(error: BaseException | None) -> str:
    if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
        return "the database is read-only: VESTRY_ADMIN_URL must name the primary server"
    if isinstance(error, psycopg.OperationalError) and error.sqlstate is None:
        return (
            "the connection to the database failed: check that the server runs and accepts the "
            f"login {SCHEMA_OWNER}, then migrate again"
        )
    # The driver's text is not passed on: it may quote a value of a row.
    code = error.sqlstate if isinstance(error, psycopg.Error) else None
    reason = f"{type(error).__name__}, SQLSTATE {code or 'none'}"
    return f"the database refused a statement ({reason}): see its log, then migrate again"


def admin_login(environment: Mapping[str, str]) -> str:
    """The administrator's connection string, with the password from the file if there is one.

    Raises:
        MissingSettingError: VESTRY_ADMIN_URL is not set.
        MigrationError: it is malformed.
    """
    url = _required(environment, "VESTRY_ADMIN_URL")
    file = environment.get("VESTRY_ADMIN_PASSWORD_FILE")
    try:
        return make_conninfo(url, password=_read(Path(file))) if file else url
    except psycopg.ProgrammingError:
        raise MigrationError(MALFORMED) from None


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
    except (MissingSettingError, MigrationError, SchemaError) as error:
        sys.exit(f"migrate: {error}")
    sys.stdout.write("migrate: roles, extension and schema are up to date\n")


if __name__ == "__main__":
    main()
