"""Undoes a claim that its worker never heard of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

import psycopg

from models import transitions

Connection = psycopg.Connection[Any]

LOST_UNHEARD: Final = "the answer to the claim was lost, and nothing ran"
"""The reason on the receipt of an attempt that was counted as a crash, and is no more."""


def take_back(conn: Connection, token: UUID, job_ids: Sequence[UUID], *, alone: bool) -> bool:
    """Undo a claim that its worker never heard of: nothing of it ran. To repeat it changes nothing.

    Args:
        conn: a connection in a transaction.
        token: the lease, which may never have been committed.
        job_ids: its jobs.
        alone: whether it was a suspect's, whose crash is taken back if the reconciler was first.

    Returns:
        Whether there was anything to undo.
    """
    if transitions.hand_back(conn, token):
        return True
    if not alone:
        return False
    ids = list(job_ids)
    conn.execute("SELECT FROM vestry.jobs WHERE id = ANY (%s) ORDER BY id FOR UPDATE", [ids])
    exonerated = transitions.exonerate(conn, token, ids)
    conn.execute(
        """UPDATE vestry.receipts SET reason = %s
           WHERE job_id = ANY (%s) AND lease_id = %s AND outcome = 'lost' AND reason = %s""",
        [LOST_UNHEARD, ids, token, transitions.LOST_ALONE],
    )
    return exonerated > 0
