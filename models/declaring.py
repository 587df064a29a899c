"""What every declared table is made with."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, DateTime, MetaData, func
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.types import UserDefinedType

SCHEMA = "vestry"


class Base(DeclarativeBase):
    """Holds the metadata that Alembic compares."""

    metadata = MetaData(schema=SCHEMA)


class Xid8(UserDefinedType[int]):
    """Postgres's 64-bit transaction id."""

    cache_ok = True

    def get_col_spec(self, **_kw: Any) -> str:
        """The type's name in SQL."""
        return "xid8"


def now_column(name: str, **kw: Any) -> Column[Any]:
    """A time that is the database's clock unless given."""
    return Column(name, DateTime(timezone=True), server_default=func.vestry.clock(), **kw)


def time_column(name: str, **kw: Any) -> Column[Any]:
    """A time with its zone."""
    return Column(name, DateTime(timezone=True), **kw)
