"""Bootstrap as an administrator: roles, schema and extension. Then migrations as the schema's owner."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import psycopg
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from psycopg import sql
from sqlalchemy.engine import make_url

from vestry.db.schema_revision import SchemaError, pgvector_fault, read_revision

# The Postgres roles, one per class of process. Their grants are in the migrations.

SCHEMA_OWNER: Final = "vestry_owner"
"""Owns the schema and runs migrations. No worker connects as it."""

PRODUCER: Final = "vestry_producer"
PRIVATE_WORKER: Final = "vestry_private"
SHAREABLE_WORKER: Final = "vestry_shareable"
CLOUD_WORKER: Final = "vestry_cloud"
CONTROL: Final = "vestry_control"
"""Dispatcher and reconciler: states and clean-up, never content."""
MONITOR: Final = "vestry_monitor"
OPERATOR: Final = "vestry_operator"
"""`vestry keys`, `forget` and `audit`: wrapped keys and tombstones, never content."""

ROLES: Final[tuple[str, ...]] = (
    SCHEMA_OWNER,
    PRODUCER,
    PRIVATE_WORKER,
    SHAREABLE_WORKER,
    CLOUD_WORKER,
    CONTROL,
    MONITOR,
    OPERATOR,
)


def bootstrap(conn: psycopg.Connection[Any], passwords: Mapping[str, str]) -> None:
    """Create or refresh roles, the extension and the schema. Idempotent.

    The statements hold SCRAM verifiers, not passwords: a server may log them.

    Args:
        conn: an autocommit connection with CREATEROLE and the right to create the extension.
        passwords: role name to password, for every name in ROLES.

    Raises:
        SchemaError: pgvector is missing or too old.
    """
    for role in ROLES:
        name = sql.Identifier(role)
        with conn.transaction():
            exists = conn.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role]).fetchone()
            verb = sql.SQL("ALTER" if exists else "CREATE")
            verifier = conn.pgconn.encrypt_password(
                passwords[role].encode(), role.encode(), b"scram-sha-256"
            )
            conn.execute(
                sql.SQL("{} ROLE {} LOGIN PASSWORD {}").format(
                    verb, name, sql.Literal(verifier.decode())
                )
            )
    _create_extension(conn)
    conn.execute(
        sql.SQL("CREATE SCHEMA IF NOT EXISTS vestry AUTHORIZATION {}").format(
            sql.Identifier(SCHEMA_OWNER)
        )
    )


def _create_extension(conn: psycopg.Connection[Any]) -> None:
    row = conn.execute(
        """SELECT coalesce(installed_version, default_version)
           FROM pg_available_extensions WHERE name = 'vector'"""
    ).fetchone()
    fault = pgvector_fault(None if row is None else row[0])
    if fault is not None:
        raise SchemaError(fault)
    conn.execute("CREATE EXTENSION IF NOT EXISTS vector")


def migrate(url: str, revision: str = "head") -> None:
    """Upgrade the schema to a revision, connecting as vestry_owner.

    Args:
        url: `postgresql+psycopg://…` of the schema's owner.
        revision: an Alembic revision, `head` by default.

    Raises:
        SchemaError: the schema is at a revision that is not in migrations/.
    """
    config = alembic_config(url)
    libpq = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(libpq, autocommit=True) as conn:
        current = read_revision(conn)
    revisions = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if current is not None and current not in revisions:
        raise SchemaError(
            f"the database's schema is at revision {current}, which this version does not have: "
            "use the version that migrated it, or an empty database"
        )
    command.upgrade(config, revision)


def alembic_config(url: str) -> Config:
    """Alembic's configuration for this checkout and a database."""
    config = Config()
    config.set_main_option(
        "script_location", str(Path(__file__).resolve().parent.parent / "migrations")
    )
    config.attributes["url"] = url
    return config
