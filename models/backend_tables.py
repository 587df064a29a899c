"""The tables of routing: which model serves what, and what all workers know of its server.

Content is in none of them. A test holds them, with `models.tables`, against the migrated schema.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Date, Index, Integer, Numeric, Table, Text, text

from models.declaring import Base, now_column, time_column

routes = Table(
    "routes",
    Base.metadata,
    *(
        Column(name, Text, primary_key=True)
        for name in ("kind", "task", "privacy", "latency", "quality", "tier")
    ),
    Column("pool", Text, nullable=False),
    Column("model", Text, nullable=False),
)

backend_health = Table(
    "backend_health",
    Base.metadata,
    Column("backend", Text, primary_key=True),
    Column("failures", Integer, nullable=False, server_default=text("0")),
    Column("openings", Integer, nullable=False, server_default=text("0")),
    Column("reason", Text),
    time_column("away_until"),
    time_column("probing_until"),
    now_column("changed_at", nullable=False),
)

rate_grants = Table(
    "rate_grants",
    Base.metadata,
    Column("backend", Text, nullable=False),
    time_column("at", nullable=False),
    Index("rate_grants_window", "backend", "at"),
)

spending = Table(
    "spending",
    Base.metadata,
    Column("day", Date, primary_key=True),
    Column("backend", Text, primary_key=True),
    *(
        Column(name, BigInteger, nullable=False, server_default=text("0"))
        for name in ("calls", "input_tokens", "output_tokens")
    ),
    Column("cost", Numeric, nullable=False, server_default=text("0")),
)
