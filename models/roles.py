"""The Postgres roles, one per class of process. Their grants are in the migrations."""

from __future__ import annotations

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
