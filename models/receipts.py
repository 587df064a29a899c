"""Receipts: one per attempt, written even if its effects were refused: the call was made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg

from models.arrays import column
from vestry.db.receipts import Served

Connection = psycopg.Connection[Any]


@dataclass(frozen=True, slots=True)
class Attempt:
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


def insert(conn: Connection, privacy: str, token: UUID, attempts: Sequence[Attempt]) -> None:
    """Write the receipts of one lease's attempts.

    A rescued attempt that finishes after all replaces the outcome `lost` written by the reconciler.
    Nothing else is replaced: a finish repeated after an unclear COMMIT must not turn success into
    refusal.
    """
    if not attempts:
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
            column(a.job_id for a in attempts),
            column(a.attempt for a in attempts),
            column(a.outcome for a in attempts),
            column(a.reason for a in attempts),
            column(a.served.intended_backend for a in attempts),
            column(a.served.intended_model for a in attempts),
            column(a.served.backend for a in attempts),
            column(a.served.model for a in attempts),
            column(a.served.locality for a in attempts),
            column(a.served.degraded for a in attempts),
            column(a.served.policy for a in attempts),
            column(a.served.input_tokens for a in attempts),
            column(a.served.output_tokens for a in attempts),
            column(a.served.cost for a in attempts),
            column(a.started_at for a in attempts),
        ],
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
