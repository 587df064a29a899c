"""Alembic's environment: one connection, one transaction, short lock waits, the schema "vestry".

The database is the `url` attribute of the config, else `VESTRY_MIGRATION_URL`: a login of vestry_owner.
"""

from __future__ import annotations

import os

from alembic import context
from sqlalchemy import create_engine, text

LOCK_TIMEOUT = "5s"
"""A migration that does not get its lock fails, so that workers do not queue behind it."""
STATEMENT_TIMEOUT = "15min"


def run() -> None:
    """Migrate in one transaction."""
    url = context.config.attributes.get("url") or os.environ["VESTRY_MIGRATION_URL"]
    engine = create_engine(url, hide_parameters=True)
    with engine.begin() as connection:
        connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'"))
        connection.execute(text(f"SET LOCAL statement_timeout = '{STATEMENT_TIMEOUT}'"))
        context.configure(
            connection=connection,
            version_table_schema="vestry",
            transaction_per_migration=False,
        )
        context.run_migrations()
    engine.dispose()


run()
