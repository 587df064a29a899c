"""The declared tables; a test compares them with the migrated schema.

Private and shareable content have tables of the same shape: sealed `bytea` with a key id in the
private ones, text in the shareable ones. One function declares both, so that they cannot diverge.
Comments on tables and columns are in migrations/.
"""

from __future__ import annotations

from typing import Any, Final

from pgvector.sqlalchemy import HALFVEC
from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Column,
    Computed,
    Date,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import UserDefinedType

metadata: Final = MetaData(schema="vestry")


class Xid8(UserDefinedType[int]):
    """Postgres's 64-bit transaction id."""

    cache_ok = True

    def get_col_spec(self, **_kw: Any) -> str:
        """The type's name in SQL."""
        return "xid8"


def _now(name: str, **kw: Any) -> Column[Any]:
    """A time whose default is the database's clock."""
    return Column(name, DateTime(timezone=True), server_default=func.vestry.clock(), **kw)


def _time(name: str, **kw: Any) -> Column[Any]:
    """A time with time zone."""
    return Column(name, DateTime(timezone=True), **kw)


owners = Table(
    "owners",
    metadata,
    Column("owner", Text, primary_key=True),
    _now("created_at", nullable=False),
    _time("forgotten_at"),
)

owner_keys = Table(
    "owner_keys",
    metadata,
    Column("key_id", Uuid, primary_key=True),
    Column(
        "owner",
        Text,
        ForeignKey(owners.c.owner, ondelete="CASCADE"),
        nullable=False,
        unique=True,
    ),
    Column("wrapped", LargeBinary, nullable=False),
    Column("kek_id", Text, nullable=False),
    Column("created_xid", Xid8, nullable=False, server_default=func.pg_current_xact_id()),
    _now("created_at", nullable=False),
)

wrapping_keys = Table(
    "wrapping_keys",
    metadata,
    Column("kek_id", Text, primary_key=True),
    _now("created_at", nullable=False),
    _time("retired_at"),
)

lanes = Table(
    "lanes",
    metadata,
    Column("lane", Text, primary_key=True),
    Column("privacy", Text, nullable=False),
    Column("latency", Text, nullable=False),
    Column("pool", Text, nullable=False),
    _time("paused_at"),
    Column("virtual_time", BigInteger, nullable=False, server_default=text("0")),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("task", Text),
    Column("quality", Text, nullable=False, server_default="adequate"),
    Column("tier", Text),
    Column("model", Text),
    Column("owner", Text, nullable=False),
    Column("privacy", Text, nullable=False),
    Column("latency", Text, nullable=False),
    Column("pool", Text, nullable=False),
    Column(
        "lane",
        Text,
        Computed("privacy || '.' || latency || '.' || pool", persisted=True),
        nullable=False,
    ),
    Column("state", Text, nullable=False, server_default="queued"),
    Column("cost", Integer, nullable=False, server_default=text("1")),
    Column("start_tag", BigInteger),
    Column("attempt", Integer, nullable=False, server_default=text("0")),
    Column("max_attempts", Integer, nullable=False, server_default=text("5")),
    Column("crashes", Integer, nullable=False, server_default=text("0")),
    Column("quarantined", Boolean, nullable=False, server_default=text("false")),
    Column("keep_payload", Boolean, nullable=False, server_default=text("true")),
    Column("result_ttl_s", Integer, nullable=False, server_default=text("604800")),
    Column("degraded", Boolean, nullable=False, server_default=text("false")),
    Column("lease_id", Uuid),
    Column("error_code", Text),
    Column("error_message", Text),
    Column("parent_id", Uuid),
    Column("root_id", Uuid),
    Column("replay_of", Uuid),
    Column("tried_models", JSONB),
    _now("run_at", nullable=False),
    _time("deadline"),
    _time("hinted_at"),
    _now("created_at", nullable=False),
    _time("started_at"),
    _time("finished_at"),
    postgresql_with={"fillfactor": 85},
)

_RUNNABLE = "state = 'queued' AND start_tag IS NOT NULL"
Index(
    "jobs_ready",
    *(jobs.c[n] for n in ("lane", "kind", "start_tag", "id")),
    postgresql_where=text(f"{_RUNNABLE} AND NOT quarantined"),
)
Index(
    "jobs_quarantined",
    *(jobs.c[n] for n in ("lane", "kind", "start_tag", "id")),
    postgresql_where=text(f"{_RUNNABLE} AND quarantined"),
)
Index(
    "jobs_owner_tag",
    *(jobs.c[n] for n in ("lane", "owner", "start_tag")),
    postgresql_where=text(_RUNNABLE),
)
Index(
    "jobs_scheduled", jobs.c.run_at, postgresql_where=text("state = 'queued' AND start_tag IS NULL")
)
Index("jobs_lease", jobs.c.lease_id, postgresql_where=text("lease_id IS NOT NULL"))
Index(
    "jobs_deadline",
    jobs.c.deadline,
    postgresql_where=text("deadline IS NOT NULL AND finished_at IS NULL"),
)
Index("jobs_finished", jobs.c.finished_at, postgresql_where=text("finished_at IS NOT NULL"))
Index("jobs_parent", jobs.c.parent_id, postgresql_where=text("parent_id IS NOT NULL"))
Index("jobs_root", jobs.c.root_id, postgresql_where=text("root_id IS NOT NULL"))
Index(
    "jobs_replay",
    jobs.c.replay_of,
    unique=True,
    postgresql_where=text("replay_of IS NOT NULL"),
)

leases = Table(
    "leases",
    metadata,
    Column("id", Uuid, primary_key=True, server_default=func.gen_random_uuid()),
    Column("lane", Text, nullable=False),
    Column("privacy", Text, nullable=False),
    Column("worker", Text, nullable=False),
    Column("exclusive", Boolean, nullable=False, server_default=text("false")),
    _now("created_at", nullable=False),
    _time("expires_at", nullable=False),
    _time("max_until", nullable=False),
    Index("leases_expiry", "expires_at"),
    postgresql_with={"fillfactor": 70},
)

receipts = Table(
    "receipts",
    metadata,
    Column("job_id", Uuid, primary_key=True),
    Column("lease_id", Uuid, primary_key=True),
    Column("privacy", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("reason", Text),
    Column("intended_backend", Text),
    Column("intended_model", Text),
    Column("served_backend", Text),
    Column("served_model", Text),
    Column("locality", Text),
    Column("degraded", Boolean, nullable=False, server_default=text("false")),
    Column("policy_version", Text),
    Column("input_tokens", BigInteger),
    Column("output_tokens", BigInteger),
    Column("cost", Numeric),
    _time("started_at"),
    _now("finished_at", nullable=False),
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("owner", Text, primary_key=True),
    Column("privacy", Text, primary_key=True),
    Column("key_hash", LargeBinary, primary_key=True),
    Column("content_hash", LargeBinary, nullable=False),
    Column("job_id", Uuid, nullable=False),
    Index("idempotency_keys_job", "job_id"),
)

spaces = Table(
    "spaces",
    metadata,
    Column("id", Integer, Identity(always=True), primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("model", Text, nullable=False),
    Column("revision", Text, nullable=False),
    Column("dimension", Integer, nullable=False),
    Column("query_prefix", Text, nullable=False, server_default=""),
    Column("document_prefix", Text, nullable=False, server_default=""),
    Column("normalised", Boolean, nullable=False),
    Column("precision", Text, nullable=False),
    Column("library", Text, nullable=False),
    _now("created_at", nullable=False),
)

job_documents = Table(
    "job_documents",
    metadata,
    Column("job_id", Uuid, primary_key=True),
    Column("ordinal", Integer, primary_key=True),
    Column("privacy", Text, nullable=False),
    Column("document_id", Uuid, nullable=False),
    Column("generation", BigInteger, nullable=False),
)


routes = Table(
    "routes",
    metadata,
    *(
        Column(name, Text, primary_key=True)
        for name in ("kind", "task", "privacy", "latency", "quality", "tier")
    ),
    Column("pool", Text, nullable=False),
    Column("model", Text, nullable=False),
)

backend_health = Table(
    "backend_health",
    metadata,
    Column("backend", Text, primary_key=True),
    Column("failures", Integer, nullable=False, server_default=text("0")),
    Column("openings", Integer, nullable=False, server_default=text("0")),
    Column("reason", Text),
    _time("open_until"),
    _time("probing_until"),
    _now("changed_at", nullable=False),
)

rate_permits = Table(
    "rate_permits",
    metadata,
    Column("backend", Text, nullable=False),
    _time("at", nullable=False),
    Index("rate_permits_window", "backend", "at"),
)

spending = Table(
    "spending",
    metadata,
    Column("day", Date, primary_key=True),
    Column("backend", Text, primary_key=True),
    *(
        Column(name, BigInteger, nullable=False, server_default=text("0"))
        for name in ("calls", "input_tokens", "output_tokens")
    ),
    Column("cost", Numeric, nullable=False, server_default=text("0")),
)

egress = Table(
    "egress",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    _now("at", nullable=False),
    Column("privacy", Text, nullable=False),
    Column("locality", Text, nullable=False),
    Column("backend", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("job_ids", ARRAY(Uuid), nullable=False),
    Index("egress_at", "at"),
)


def _content(name: str, privacy: str, *, nullable: bool = False) -> list[Column[Any]]:
    """A content column: sealed bytes with their key id, or text."""
    if privacy == "private":
        return [
            Column("key_id", Uuid, nullable=nullable),
            Column(name, LargeBinary, nullable=nullable),
        ]
    return [Column(name, Text, nullable=nullable)]


def _content_tables(privacy: str) -> None:
    """Declare the six content tables of a privacy class."""
    Table(
        f"{privacy}_payloads",
        metadata,
        Column("job_id", Uuid, primary_key=True),
        Column("owner", Text, nullable=False),
        *_content("body", privacy),
    )
    Table(
        f"{privacy}_results",
        metadata,
        Column("job_id", Uuid, primary_key=True),
        Column("owner", Text, nullable=False),
        *_content("body", privacy),
        _time("expires_at", nullable=False),
        Index(f"{privacy}_results_expiry", "expires_at"),
    )
    key = [Column("key_id", Uuid, nullable=False)] if privacy == "private" else []
    Table(
        f"{privacy}_blobs",
        metadata,
        Column("job_id", Uuid, primary_key=True),
        Column("name", Text, primary_key=True),
        Column("part", Integer, primary_key=True),
        Column("owner", Text, nullable=False),
        *key,
        Column("body", LargeBinary, nullable=False),
    )
    documents = Table(
        f"{privacy}_documents",
        metadata,
        Column("id", Uuid, primary_key=True),
        Column("owner", Text, nullable=False),
        Column("source", Text, nullable=False),
        Column("external_hash", LargeBinary, nullable=False),
        Column("generation", BigInteger, nullable=False, server_default=text("1")),
        Column("deleted", Boolean, nullable=False, server_default=text("false")),
        Column("indexed_generation", BigInteger),
        Column("indexed_hash", LargeBinary),
        Column("indexed_space", Integer, ForeignKey(spaces.c.id)),
        *_content("detail", privacy, nullable=True),
        _now("updated_at", nullable=False),
        UniqueConstraint("owner", "source", "external_hash"),
    )
    chunks = Table(
        f"{privacy}_chunks",
        metadata,
        Column("id", Uuid, primary_key=True),
        Column("document_id", Uuid, ForeignKey(documents.c.id, ondelete="CASCADE"), nullable=False),
        Column("owner", Text, nullable=False),
        Column("ordinal", Integer, nullable=False),
        Column("start_char", Integer, nullable=False),
        Column("end_char", Integer, nullable=False),
        Column("content_hash", LargeBinary, nullable=False),
        *([Column("key_id", Uuid, nullable=False)] if privacy == "private" else []),
        Column("text", LargeBinary if privacy == "private" else Text),
        Index(f"{privacy}_chunks_document", "document_id"),
    )
    partitioned: dict[str, Any] = (
        {"postgresql_partition_by": "LIST (space_id)"} if privacy == "shareable" else {}
    )
    embeddings = Table(
        f"{privacy}_embeddings",
        metadata,
        Column("chunk_id", Uuid, ForeignKey(chunks.c.id, ondelete="CASCADE"), primary_key=True),
        Column("space_id", Integer, ForeignKey(spaces.c.id), primary_key=True),
        Column("owner", Text, nullable=False),
        Column("source", Text, nullable=False),
        Column("vector", HALFVEC, nullable=False),
        Index(f"{privacy}_embeddings_owner", "owner", "space_id", "source"),
        **partitioned,
    )
    if privacy == "shareable":
        Index("shareable_embeddings_source", embeddings.c.source, embeddings.c.space_id)


_content_tables("private")
_content_tables("shareable")
