"""Alembic's environment: one connection, short lock waits, everything in schema "vestry".

The database is `VESTRY_MIGRATION_URL` (a login of the role vestry_owner), or the `url` attribute a
caller set on the config.
"""

from __future__ import annotations

import os

from alembic import context
from sqlalchemy import create_engine, text

from models.tables import Base

LOCK_TIMEOUT = "5s"
"""A migration that cannot get its lock gives up rather than queue every worker behind it."""
STATEMENT_TIMEOUT = "15min"


def _include(obj: object, name: str | None, kind: str, reflected: bool, other: object) -> bool:  # noqa: ARG001
    # Partitions are made per space at run time; Alembic's own table is not ours to declare.
    return not (
        kind == "table"
        and name is not None
        and (name.startswith("shareable_embeddings_s") or name == "alembic_version")
    )


def run() -> None:
    """Migrate in one transaction."""
    url = context.config.attributes.get("url") or os.environ["VESTRY_MIGRATION_URL"]
    engine = create_engine(url, hide_parameters=True)
    with engine.begin() as connection:
        connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'"))
        connection.execute(text(f"SET LOCAL statement_timeout = '{STATEMENT_TIMEOUT}'"))
        context.configure(
            connection=connection,
            target_metadata=Base.metadata,
            include_schemas=True,
            include_object=_include,
            version_table_schema="vestry",
            transaction_per_migration=False,
        )
        context.run_migrations()
    engine.dispose()


run()
