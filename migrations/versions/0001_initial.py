"""The schema: tables, contract functions, grants and row security.

Revision ID: 0001_initial
Revises:
"""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0001_initial"
down_revision: str | None = None
branch_labels = None
depends_on = None

SQL = Path(__file__).resolve().parent.parent / "sql" / "0001_initial"
UPGRADE = (
    "tables.sql",
    "lanes.sql",
    "states.sql",
    "routes.sql",
    "enqueue.sql",
    "flows.sql",
    "cancel.sql",
    "replay.sql",
    "documents.sql",
    "owner_keys.sql",
    "erasure.sql",
    "backends.sql",
    "egress.sql",
    "security.sql",
)


def upgrade() -> None:
    _execute(*UPGRADE)


def downgrade() -> None:
    _execute("down.sql")


def _execute(*names: str) -> None:
    bind = op.get_bind().execution_options(no_parameters=True)
    for name in names:
        bind.exec_driver_sql((SQL / name).read_text(encoding="utf-8"))
