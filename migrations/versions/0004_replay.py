"""Replay: a finished job once more, as a new job.

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0004"
down_revision: str | None = "0003"
branch_labels = None
depends_on = None

SQL = Path(__file__).resolve().parent.parent / "sql" / "v0004"


def upgrade() -> None:
    bind = op.get_bind().execution_options(no_parameters=True)
    for part in sorted(SQL.glob("*.sql")):
        bind.exec_driver_sql(part.read_text(encoding="utf-8"))


def downgrade() -> None:
    bind = op.get_bind().execution_options(no_parameters=True)
    for part in sorted((SQL / "down").glob("*.sql")):
        bind.exec_driver_sql(part.read_text(encoding="utf-8"))
