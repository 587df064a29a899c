"""Receipts: one per attempt, kept also when its effects were refused. The call was made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg

from models.arrays import column

Connection = psycopg.Connection[Any]


@dataclass(frozen=True, slots=True)
class Receipt:
    """One attempt: what was meant to serve it, what did, and how it ended.

    `outcome` is the job's new state, `retry`, `rerouted`, or `refused` where the lease was no longer
    held. Nothing intended: what served it was. `cost` is in US dollars.
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


def insert(conn: Connection, privacy: str, token: UUID, receipts: Sequence[Receipt]) -> None:
    """Write the receipts of one lease's attempts.

    What the rescued attempt itself says replaces the `lost` that the reconciler noted for it. Nothing
    else is replaced: a finish repeated after an unclear COMMIT must not turn success into refusal.
    """
    if not receipts:
        return
    conn.execute(
        """INSERT INTO vestry.receipts AS r
             (job_id, lease_id, privacy, attempt, outcome, reason, intended_backend, intended_model,
              served_backend, served_model, locality, degraded, policy_version,
              input_tokens, output_tokens, cost, started_at)
           SELECT u.job_id, %s, %s, u.attempt, u.outcome, u.reason,
                  coalesce(u.intended_backend, u.backend), coalesce(u.intended_model, u.model),
                  u.backend, u.model, u.locality, u.degraded, u.policy,
                  u.input_tokens, u.output_tokens, u.cost, u.started_at
           FROM unnest(%b::uuid[], %b::int[], %b::text[], %b::text[], %b::text[], %b::text[],
                       %b::text[], %b::text[], %b::text[], %b::bool[], %b::text[],
                       %b::bigint[], %b::bigint[], %b::numeric[], %b::timestamptz[])
             u(job_id, attempt, outcome, reason, intended_backend, intended_model, backend, model,
               locality, degraded, policy, input_tokens, output_tokens, cost, started_at)
           ON CONFLICT (job_id, lease_id) DO UPDATE
           SET outcome = excluded.outcome, reason = excluded.reason,
               intended_backend = excluded.intended_backend,
               intended_model = excluded.intended_model,
               served_backend = excluded.served_backend, served_model = excluded.served_model,
               locality = excluded.locality, degraded = excluded.degraded,
               policy_version = excluded.policy_version, input_tokens = excluded.input_tokens,
               output_tokens = excluded.output_tokens, cost = excluded.cost,
               finished_at = excluded.finished_at
           WHERE r.outcome = 'lost'""",
        [
            token,
            privacy,
            column(r.job_id for r in receipts),
            column(r.attempt for r in receipts),
            column(r.outcome for r in receipts),
            column(r.reason for r in receipts),
            column(r.intended_backend for r in receipts),
            column(r.intended_model for r in receipts),
            column(r.backend for r in receipts),
            column(r.model for r in receipts),
            column(r.locality for r in receipts),
            column(r.degraded for r in receipts),
            column(r.policy for r in receipts),
            column(r.input_tokens for r in receipts),
            column(r.output_tokens for r in receipts),
            column(r.cost for r in receipts),
            column(r.started_at for r in receipts),
        ],
        prepare=True,
    )
    _spend(conn, receipts)


def _spend(conn: Connection, receipts: Sequence[Receipt]) -> None:
    """Add to what clouds cost today."""
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
