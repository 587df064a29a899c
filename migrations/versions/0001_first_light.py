"""The schema, its contract functions, roles' grants and row security.

Revision ID: 0001
Revises:
"""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0001"
down_revision: str | None = None
branch_labels = None
depends_on = None

SQL = Path(__file__).resolve().parent.parent / "sql" / "v0001"


def upgrade() -> None:
    bind = op.get_bind().execution_options(no_parameters=True)
    for part in sorted(SQL.glob("*.sql")):
        bind.exec_driver_sql(part.read_text(encoding="utf-8"))


def downgrade() -> None:
    op.get_bind().execution_options(no_parameters=True).exec_driver_sql(
        (SQL / "down" / "1_down.sql").read_text(encoding="utf-8"),
    )
