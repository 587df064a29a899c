"""Audit of requests to clouds, from the egress record that is committed before each request."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any

import psycopg

Connection = psycopg.Connection[Any]


@dataclass(frozen=True, slots=True)
class EgressSummary:
    """Requests of one privacy class to one backend on one day (UTC)."""

    day: dt.date
    privacy: str
    backend: str
    locality: str
    requests: int
    jobs: int
    bytes: int


@dataclass(frozen=True, slots=True)
class AuditReport:
    """Audit of the requests to clouds in a period.

    Attributes:
        since: start of the period.
        until: end of the period, exclusive.
        egress: requests by day, class and backend.
        private_requests: requests for private jobs. The table refuses such rows.
        private_receipts: attempts of private jobs that a cloud served, by the workers' receipts.
        unrecorded: attempts of shareable jobs that a cloud served without a recorded request.
        guarded: the constraints that refuse private rows are in place, and no role may change or
            delete a row.
    """

    since: dt.datetime
    until: dt.datetime
    egress: tuple[EgressSummary, ...]
    private_requests: int
    private_receipts: int
    unrecorded: int
    guarded: bool

    @property
    def clean(self) -> bool:
        """Whether no private content was sent, and every request is recorded."""
        return self.guarded and not (
            self.private_requests or self.private_receipts or self.unrecorded
        )


_EGRESS = """
WITH e AS MATERIALIZED (
  SELECT (at AT TIME ZONE 'UTC')::date AS day, privacy, backend, locality, bytes, job_ids
  FROM vestry.egress WHERE at >= %(since)s AND at < %(until)s),
jobs AS (
  SELECT e.day, e.privacy, e.backend, e.locality, count(DISTINCT u.id) AS jobs
  FROM e, unnest(e.job_ids) u(id) GROUP BY 1, 2, 3, 4)
SELECT day, privacy, backend, locality, count(*), max(jobs.jobs), sum(e.bytes)::bigint
FROM e JOIN jobs USING (day, privacy, backend, locality)
GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3"""
_RECEIPTS = """
SELECT count(*) FILTER (WHERE r.privacy = 'private'),
       count(*) FILTER (WHERE r.privacy = 'shareable'
                          AND r.job_id NOT IN (SELECT unnest(job_ids) FROM vestry.egress))
FROM vestry.receipts r
WHERE r.locality = 'cloud' AND r.served_backend IS NOT NULL
  AND r.finished_at >= %(since)s AND r.finished_at < %(until)s"""
_GUARDED = """
SELECT (SELECT count(*) = 2 FROM pg_constraint
        WHERE conrelid = c.oid AND contype = 'c' AND convalidated AND conenforced
          AND pg_get_constraintdef(oid) IN ('CHECK ((privacy = ''shareable''::text))',
                                            'CHECK ((locality = ''cloud''::text))'))
   AND c.relrowsecurity AND c.relforcerowsecurity
   AND NOT EXISTS (SELECT FROM pg_policy p
                   WHERE p.polrelid = c.oid AND p.polcmd NOT IN ('r', 'a'))
   AND NOT EXISTS (SELECT FROM aclexplode(c.relacl) a
                   WHERE a.grantee <> c.relowner AND a.privilege_type <> 'SELECT')
FROM pg_class c WHERE c.oid = 'vestry.egress'::regclass"""


def report(conn: Connection, since: dt.datetime, until: dt.datetime) -> AuditReport:
    """The audit of a period.

    Args:
        conn: an operator's connection.
        since: start of the period.
        until: end of the period, exclusive.
    """
    span = {"since": since, "until": until}
    egress = tuple(EgressSummary(*row) for row in conn.execute(_EGRESS, span).fetchall())
    receipts = conn.execute(_RECEIPTS, span).fetchone()
    guarded = conn.execute(_GUARDED).fetchone()
    assert receipts is not None  # noqa: S101 - an aggregate always has a row
    return AuditReport(
        since=since,
        until=until,
        egress=egress,
        private_requests=sum(row.requests for row in egress if row.privacy != "shareable"),
        private_receipts=receipts[0],
        unrecorded=receipts[1],
        guarded=bool(guarded and guarded[0]),
    )
