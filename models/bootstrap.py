"""What only an administrator can do: roles, schema, extension; then migrations as the owner."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import psycopg
from alembic import command
from alembic.config import Config
from psycopg import sql

# The Postgres roles, one per class of process. Their grants are in the migrations.

SCHEMA_OWNER = "vestry_owner"
"""Owns the schema and runs migrations. No worker ever connects as it."""

PRODUCER = "vestry_producer"
PRIVATE_WORKER = "vestry_private"
SHAREABLE_WORKER = "vestry_shareable"
CLOUD_WORKER = "vestry_cloud"
CONTROL = "vestry_control"
"""Dispatcher and reconciler: states and clean-up, never content."""
MONITOR = "vestry_monitor"
OPERATOR = "vestry_operator"
"""`vestry keys`, `forget` and `audit`: wrapped keys and tombstones, never content."""

ROLES: tuple[str, ...] = (
    SCHEMA_OWNER,
    PRODUCER,
    PRIVATE_WORKER,
    SHAREABLE_WORKER,
    CLOUD_WORKER,
    CONTROL,
    MONITOR,
    OPERATOR,
)


MINIMUM_PGVECTOR = (0, 8, 3)
"""pgvector before 0.8.3 can corrupt an HNSW index on vacuum (its changelog, 0.8.3)."""


def bootstrap(conn: psycopg.Connection[tuple[object, ...]], passwords: Mapping[str, str]) -> None:
    """Create or refresh roles, the extension and the schema. Safe to repeat.

    The statements hold SCRAM verifiers, not passwords: a server may log them.

    Args:
        conn: an autocommit connection with CREATEROLE and the right to create the extension.
        passwords: role name to password, for every name in ROLES.
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
    conn.execute("CREATE EXTENSION IF NOT EXISTS vector")
    conn.execute(
        sql.SQL("CREATE SCHEMA IF NOT EXISTS vestry AUTHORIZATION {}").format(
            sql.Identifier(SCHEMA_OWNER)
        )
    )


def migrate(url: str, revision: str = "head") -> None:
    """Upgrade the schema to a revision, connecting as vestry_owner.

    Args:
        url: `postgresql+psycopg://…` of the schema's owner.
        revision: an Alembic revision, `head` by default.
    """
    command.upgrade(alembic_config(url), revision)


def alembic_config(url: str) -> Config:
    """Alembic's configuration for this checkout and a database."""
    config = Config()
    config.set_main_option(
        "script_location", str(Path(__file__).resolve().parent.parent / "migrations")
    )
    config.attributes["url"] = url
    return config
