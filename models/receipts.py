"""Receipts: one per attempt, also if its effects were refused, since the model call was made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg

from models.sql import QUERIES
from vestry.db.operations import column
from vestry.db.receipts import Served

Connection = psycopg.Connection[Any]


@dataclass(frozen=True, slots=True)
class FinishedAttempt:
    """One finished attempt; its receipt is read as `vestry.db.receipts.Receipt`.

    Attributes:
        outcome: the job's new state, `retry`, `rerouted`, or `refused` if the lease was no longer held.
        reason: error code of a failed attempt, else why the job is degraded or was rerouted.
        served: the model call; without an intended model, the one that served was intended.
    """

    job_id: UUID
    attempt: int
    outcome: str
    started_at: datetime
    reason: str | None
    served: Served


_ATTEMPT = ("job_id", "attempt", "outcome", "reason", "started_at")
_SERVED = tuple(field.name for field in fields(Served) if field.name != "reason")


def insert(
    conn: Connection, privacy: str, token: UUID, attempts: Sequence[FinishedAttempt]
) -> None:
    """Write the receipts of one lease's attempts.

    A rescued attempt that finishes after all replaces the outcome `lost` written by the reconciler.
    No other receipt is replaced: a finish repeated after a COMMIT of unknown result must not turn
    success into refusal.
    """
    if not attempts:
        return
    conn.execute(
        QUERIES["insert_receipts"],
        {
            "token": token,
            "privacy": privacy,
            **{name: column(getattr(a, name) for a in attempts) for name in _ATTEMPT},
            **{name: column(getattr(a.served, name) for a in attempts) for name in _SERVED},
        },
        prepare=True,
    )
    _spend(conn, [attempt.served for attempt in attempts])


def _spend(conn: Connection, calls: Sequence[Served]) -> None:
    """Add the calls to clouds to today's spending."""
    for call in calls:
        if call.locality == "cloud" and call.backend is not None:
            conn.execute(
                """INSERT INTO vestry.spending AS s
                     (day, backend, calls, input_tokens, output_tokens, cost)
                   VALUES ((vestry.clock() AT TIME ZONE 'UTC')::date, %s, 1, %s, %s, %s)
                   ON CONFLICT (day, backend) DO UPDATE
                   SET calls = s.calls + 1, input_tokens = s.input_tokens + excluded.input_tokens,
                       output_tokens = s.output_tokens + excluded.output_tokens,
                       cost = s.cost + excluded.cost""",
                [
                    call.backend,
                    call.input_tokens or 0,
                    call.output_tokens or 0,
                    call.cost or 0,
                ],
            )
