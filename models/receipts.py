"""Receipts: one per attempt, kept also where its effects were refused: the call was made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg

from models.sql import QUERIES, column

Connection = psycopg.Connection[Any]


@dataclass(frozen=True, slots=True)
class Receipt:
    """Record of one attempt: the intended and the serving model, and how it ended.

    Attributes:
        outcome: the job's new state, `retry`, `rerouted`, or `refused` where the lease was no longer
            held.
        backend: the backend that served the attempt, as `model`.
        intended_backend: None where it is the serving one, as `intended_model`.
        cost: in US dollars.
    """

    job_id: UUID
    attempt: int
    outcome: str
    started_at: datetime
    reason: str | None = None
    backend: str | None = None
    model: str | None = None
    locality: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    intended_backend: str | None = None
    intended_model: str | None = None
    degraded: bool = False
    policy: str | None = None
    cost: Decimal | None = None


_FIELDS = tuple(field.name for field in fields(Receipt))


def insert(conn: Connection, privacy: str, token: UUID, receipts: Sequence[Receipt]) -> None:
    """Write the receipts of one lease's attempts.

    A rescued attempt's own receipt replaces the `lost` one that the reconciler wrote for it. No other
    is replaced: a finish that is repeated after a COMMIT with unknown result must not turn success
    into refusal.
    """
    if not receipts:
        return
    conn.execute(
        QUERIES["insert_receipts"],
        {
            "token": token,
            "privacy": privacy,
            **{name: column(getattr(r, name) for r in receipts) for name in _FIELDS},
        },
        prepare=True,
    )
    _spend(conn, receipts)


def _spend(conn: Connection, receipts: Sequence[Receipt]) -> None:
    """Add the cost of cloud calls to today's spending."""
    for receipt in receipts:
        if receipt.locality == "cloud" and receipt.backend is not None:
            conn.execute(
                """INSERT INTO vestry.spending AS s
                     (day, backend, calls, input_tokens, output_tokens, cost)
                   VALUES ((vestry.clock() AT TIME ZONE 'UTC')::date, %s, 1, %s, %s, %s)
                   ON CONFLICT (day, backend) DO UPDATE
                   SET calls = s.calls + 1, input_tokens = s.input_tokens + excluded.input_tokens,
                       output_tokens = s.output_tokens + excluded.output_tokens,
                       cost = s.cost + excluded.cost""",
                [
                    receipt.backend,
                    receipt.input_tokens or 0,
                    receipt.output_tokens or 0,
                    receipt.cost or 0,
                ],
            )
