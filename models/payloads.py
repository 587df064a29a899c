"""Payloads and results: what a job was given and what came of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql

from models.content import Content
from vestry.sealing import PAYLOAD, RESULT

Connection = psycopg.Connection[Any]


def read_payloads(
    conn: Connection, content: Content, owners: Mapping[UUID, str]
) -> dict[UUID, bytes | str]:
    """The stored payloads of jobs, not yet opened. Row security must name the owners."""
    rows = conn.execute(
        sql.SQL("SELECT job_id, body FROM {} WHERE job_id = ANY (%s)").format(
            sql.Identifier("vestry", f"{content.privacy}_payloads")
        ),
        [list(owners)],
        prepare=True,
    )
    return dict(rows.fetchall())


def open_payload(content: Content, job_id: UUID, owner: str, stored: bytes | str) -> dict[str, Any]:
    """Unseal and parse one payload.

    Raises:
        ValueError: it is no JSON object. The message holds none of it.
        VestryError: it does not unseal.
    """
    try:
        payload = json.loads(content.decode(owner, PAYLOAD, job_id, stored))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        payload = None
    if not isinstance(payload, dict):
        raise ValueError("the payload is not a JSON object")  # noqa: TRY004 - bad data, not a bug
    return payload


def store_results(
    conn: Connection,
    content: Content,
    results: Sequence[tuple[UUID, str, int, Mapping[str, Any]]],
) -> None:
    """Write results: (job, owner, seconds to keep it, JSON object) each."""
    if not results:
        return
    bodies = [
        content.encode(
            owner, RESULT, job_id, json.dumps(body, ensure_ascii=False, separators=(",", ":"))
        )
        for job_id, owner, _, body in results
    ]
    table = sql.Identifier("vestry", f"{content.privacy}_results")
    key = sql.SQL("key_id, ") if content.sealed else sql.SQL("")
    key_value = sql.SQL("u.key_id, ") if content.sealed else sql.SQL("")
    body_type = sql.SQL("bytea[]") if content.sealed else sql.SQL("text[]")
    conn.execute(
        sql.SQL(
            """INSERT INTO {table} (job_id, owner, {key}body, expires_at)
               SELECT u.job_id, u.owner, {key_value}u.body,
                      vestry.clock() + make_interval(secs => u.ttl)
               FROM unnest(%s::uuid[], %s::text[], %s::int[], %s::uuid[], %s::{body_type})
                 u(job_id, owner, ttl, key_id, body)"""
        ).format(table=table, key=key, key_value=key_value, body_type=body_type),
        [
            [r[0] for r in results],
            [r[1] for r in results],
            [r[2] for r in results],
            [content.key_id(r[1]) for r in results],
            bodies,
        ],
        prepare=True,
    )


def drop_payloads(conn: Connection, privacy: str, job_ids: Sequence[UUID]) -> None:
    """Delete the payloads of jobs that will not need them again."""
    if job_ids:
        conn.execute(
            sql.SQL("DELETE FROM {} WHERE job_id = ANY (%s)").format(
                sql.Identifier("vestry", f"{privacy}_payloads")
            ),
            [list(job_ids)],
            prepare=True,
        )
