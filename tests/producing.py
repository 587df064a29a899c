"""What tests of the producer library share: a job, and ends that a worker would give it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg

from vestry import (
    Embedding,
    KeyRing,
)
from vestry.sealing import RESULT

CHECKOUT = Path(__file__).resolve().parents[1]
HELLO = Embedding(texts=["hello"])


def count(root: psycopg.Connection[Any], table: str) -> int:
    row = root.execute(f"SELECT count(*) FROM vestry.{table}").fetchone()  # type: ignore[call-overload]
    return int(row[0])


def end(root: psycopg.Connection[Any], job: UUID, state: str) -> None:
    root.execute(
        """UPDATE vestry.jobs SET state = 'running', turn = NULL, lease_id = gen_random_uuid()
           WHERE id = %s""",
        [job],
    )
    root.execute(
        """UPDATE vestry.jobs SET state = %s, lease_id = NULL, finished_at = vestry.clock()
           WHERE id = %s""",
        [state, job],
    )


def succeed(
    root: psycopg.Connection[Any], keyring: KeyRing, job: UUID, result: dict[str, Any]
) -> None:
    """What a worker's finish amounts to."""
    body = json.dumps(result)
    owner, privacy = root.execute(
        "SELECT owner, privacy FROM vestry.jobs WHERE id = %s", [job]
    ).fetchone()  # type: ignore[misc]
    with root.transaction():
        if privacy == "private":
            key = keyring.unwrap(owner, *root.execute(
                "SELECT key_id, wrapped, kek_id FROM vestry.owner_keys WHERE owner = %s", [owner]
            ).fetchone())  # fmt: skip # type: ignore[misc]
            root.execute(
                """INSERT INTO vestry.private_results
                   VALUES (%s, %s, %s, %s, now() + interval '1 hour')""",
                [job, owner, key.key_id, key.seal(RESULT, job, body.encode())],
            )
        else:
            root.execute(
                "INSERT INTO vestry.shareable_results VALUES (%s, %s, %s, now() + interval '1 h')",
                [job, owner, body],
            )
        end(root, job, "succeeded")
        root.execute("SELECT pg_notify('vestry_done', %s)", [str(job)])
