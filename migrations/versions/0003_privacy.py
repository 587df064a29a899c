"""Rotating keys, forgetting owners, the record of what left for a cloud.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0003"
down_revision: str | None = "0002"
branch_labels = None
depends_on = None

SQL = Path(__file__).resolve().parent.parent / "sql" / "v0003"


def upgrade() -> None:
    bind = op.get_bind().execution_options(no_parameters=True)
    for part in sorted(SQL.glob("*.sql")):
        bind.exec_driver_sql(part.read_text(encoding="utf-8"))


def downgrade() -> None:
    bind = op.get_bind().execution_options(no_parameters=True)
    for part in sorted((SQL / "down").glob("*.sql")):
        bind.exec_driver_sql(part.read_text(encoding="utf-8"))
