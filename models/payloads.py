"""Payloads, files and results of jobs, stored sealed or as text."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, LiteralString
from uuid import UUID

import psycopg
from psycopg import sql

from models.content import Content
from vestry.crypto.envelope import PAYLOAD, RESULT, blob_field
from vestry.db.operations import column

Connection = psycopg.Connection[Any]


def read_payloads(
    conn: Connection, content: Content, owners: Mapping[UUID, str]
) -> Callable[[], dict[UUID, bytes | str]]:
    """Query the stored payloads of jobs, not yet unsealed. Row security must name the owners.

    Returns:
        A function that fetches the rows. In a pipeline, the query shares a round trip with others.
    """
    rows = conn.execute(
        _on_payloads("SELECT job_id, body FROM {} WHERE job_id = ANY (%b)", content.privacy),
        [column(owners)],
        prepare=True,
        binary=True,
    )
    return lambda: dict(rows.fetchall())


def read_blobs(
    conn: Connection, content: Content, owners: Mapping[UUID, str]
) -> Callable[[], dict[UUID, dict[str, list[bytes]]]]:
    """Query the files of jobs, as `read_payloads`: by job and name, their stored parts in order."""
    rows = conn.execute(
        _on_blobs(
            "SELECT job_id, name, body FROM {} WHERE job_id = ANY (%b) ORDER BY job_id, name, part",
            content.privacy,
        ),
        [column(owners)],
        prepare=True,
        binary=True,
    )

    def fetch() -> dict[UUID, dict[str, list[bytes]]]:
        files: dict[UUID, dict[str, list[bytes]]] = {}
        for job_id, name, body in rows:
            files.setdefault(job_id, {}).setdefault(name, []).append(body)
        return files

    return fetch


def open_blobs(
    content: Content, job_id: UUID, owner: str, stored: Mapping[str, Sequence[bytes]]
) -> dict[str, bytes]:
    """Unseal one job's files.

    Raises:
        VestryError: a part cannot be unsealed.
    """
    return {
        name: b"".join(
            content.open_bytes(owner, blob_field(name, number), job_id, part)
            for number, part in enumerate(parts)
        )
        for name, parts in stored.items()
    }


def read_upstream(
    conn: Connection, content: Content, job_ids: Sequence[UUID]
) -> Callable[[], dict[UUID, list[tuple[UUID, bytes | str]]]]:
    """Query the results of the jobs before these in their flows, nearest first."""
    rows = conn.execute(
        _on_results(
            """SELECT u.job_id, r.job_id, r.body FROM vestry.upstream_v1(%b) u
               JOIN {} r ON r.job_id = u.before ORDER BY u.job_id, u.distance""",
            content.privacy,
        ),
        [column(job_ids)],
        prepare=True,
        binary=True,
    )

    def fetch() -> dict[UUID, list[tuple[UUID, bytes | str]]]:
        results: dict[UUID, list[tuple[UUID, bytes | str]]] = {}
        for job_id, before, body in rows:
            results.setdefault(job_id, []).append((before, body))
        return results

    return fetch


def upstream_text(
    content: Content, owner: str, stored: Sequence[tuple[UUID, bytes | str]]
) -> str | None:
    """The text of the nearest result that has one.

    Raises:
        VestryError: a result cannot be unsealed.
    """
    for job_id, body in stored:
        text = json.loads(content.decode(owner, RESULT, job_id, body)).get("text")
        if isinstance(text, str):
            return text
    return None


def open_payload(content: Content, job_id: UUID, owner: str, stored: bytes | str) -> dict[str, Any]:
    """Unseal and parse one payload.

    Raises:
        ValueError: it is not a JSON object. The message holds none of its content.
        VestryError: it cannot be unsealed.
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
    """Write results, each as (job, owner, time to live in seconds, JSON object)."""
    if not results:
        return
    bodies = [
        content.encode(
            owner, RESULT, job_id, json.dumps(body, ensure_ascii=False, separators=(",", ":"))
        )
        for job_id, owner, _, body in results
    ]
    conn.execute(
        _insert_results(content.privacy, sealed=content.sealed),
        [
            column(r[0] for r in results),
            column(r[1] for r in results),
            column(r[2] for r in results),
            column(content.key_id(r[1]) for r in results),
            bodies,
        ],
        prepare=True,
    )


@cache
def _insert_results(privacy: str, *, sealed: bool) -> bytes:
    query = sql.SQL(
        """INSERT INTO {table} (job_id, owner, {key}body, expires_at)
           SELECT u.job_id, u.owner, {key_value}u.body,
                  vestry.clock() + make_interval(secs => u.ttl)
           FROM unnest(%b::uuid[], %b::text[], %b::int[], %b::uuid[], %b::{body_type})
             u(job_id, owner, ttl, key_id, body)"""
    ).format(
        table=sql.Identifier("vestry", f"{privacy}_results"),
        key=sql.SQL("key_id, " if sealed else ""),
        key_value=sql.SQL("u.key_id, " if sealed else ""),
        body_type=sql.SQL("bytea[]" if sealed else "text[]"),
    )
    return query.as_bytes()


def drop_payloads(conn: Connection, privacy: str, job_ids: Sequence[UUID]) -> None:
    """Delete the payloads of jobs that will not run again."""
    if job_ids:
        conn.execute(
            _on_payloads("DELETE FROM {} WHERE job_id = ANY (%b)", privacy),
            [column(job_ids)],
            prepare=True,
        )


def drop_blobs(conn: Connection, privacy: str, job_ids: Sequence[UUID]) -> None:
    """Delete the files of jobs that will not run again."""
    if job_ids:
        conn.execute(
            _on_blobs("DELETE FROM {} WHERE job_id = ANY (%b)", privacy),
            [column(job_ids)],
            prepare=True,
        )


@cache
def _on_blobs(query: LiteralString, privacy: str) -> bytes:
    return sql.SQL(query).format(sql.Identifier("vestry", f"{privacy}_blobs")).as_bytes()


@cache
def _on_results(query: LiteralString, privacy: str) -> bytes:
    return sql.SQL(query).format(sql.Identifier("vestry", f"{privacy}_results")).as_bytes()


@cache
def _on_payloads(query: LiteralString, privacy: str) -> bytes:
    return sql.SQL(query).format(sql.Identifier("vestry", f"{privacy}_payloads")).as_bytes()
