"""Helpers of tests of the producer library: a job, and the final states that a worker sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg

from vestry import Embedding, KeyRing
from vestry.crypto.envelope import RESULT, OwnerKey, blob_field
from workers.stack.dev_stack import DevStack

CHECKOUT = Path(__file__).resolve().parents[1]
HELLO = Embedding(texts=["hello"])


def count(root: psycopg.Connection[Any], table: str) -> int:
    row = root.execute(f"SELECT count(*) FROM vestry.{table}").fetchone()  # type: ignore[call-overload]
    return int(row[0])


def end(root: psycopg.Connection[Any], job: UUID, state: str) -> None:
    root.execute(
        """UPDATE vestry.jobs SET state = 'running', start_tag = NULL, lease_id = gen_random_uuid()
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
    """Finish a job as a worker does."""
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


def kill(root: psycopg.Connection[Any], job: UUID, code: str = "backend_unavailable") -> None:
    root.execute(
        "UPDATE vestry.jobs SET error_code = %s, error_message = 'a message' WHERE id = %s",
        [code, job],
    )
    end(root, job, "dead")


def key_of(root: psycopg.Connection[Any], stack: DevStack, owner: str) -> OwnerKey:
    row = root.execute(
        "SELECT key_id, wrapped, kek_id FROM vestry.owner_keys WHERE owner = %s", [owner]
    ).fetchone()
    assert row is not None
    return KeyRing.load(stack.keyring).unwrap(owner, *row)


def attach(
    root: psycopg.Connection[Any], stack: DevStack, job: UUID, owner: str, privacy: str
) -> None:
    """Store two parts of a file, as a producer does."""
    for part in range(2):
        body = b"page %d" % part
        if privacy == "private":
            key = key_of(root, stack, owner)
            root.execute(
                "INSERT INTO vestry.private_blobs VALUES (%s, 'scan', %s, %s, %s, %s)",
                [job, part, owner, key.key_id, key.seal(blob_field("scan", part), job, body)],
            )
        else:
            root.execute(
                "INSERT INTO vestry.shareable_blobs VALUES (%s, 'scan', %s, %s, %s)",
                [job, part, owner, body],
            )
