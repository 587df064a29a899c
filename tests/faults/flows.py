"""Flows, enqueued through the producers' SQL contract: a job, and jobs that wait for it."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg

from vestry.ids import uuid7

_ENQUEUE = """SELECT job_id FROM vestry.enqueue_jobs_v2(
  %(owner)s, 'shareable', %(latency)s, NULL, NULL, NULL, NULL, NULL, NULL, %(ids)s::uuid[],
  %(kinds)s::text[], %(pools)s::text[], NULL, %(units)s::int[], %(keep)s::bool[], %(ttl)s::int[],
  NULL, NULL, NULL, NULL, %(texts)s::text[], NULL, NULL, NULL, NULL, %(parents)s::int[])"""


@dataclass(frozen=True, slots=True)
class Flow:
    """Jobs in order; `parents` is the 1-based position of each job's parent, None for the root."""

    owner: str
    latency: str
    jobs: tuple[UUID, ...]
    parents: tuple[int | None, ...]


def make(rng: random.Random, owner: str) -> Flow:
    """A flow of two to five jobs, each waiting for an earlier one."""
    count = rng.randint(2, 5)
    parents = (None, *(rng.randint(1, number) for number in range(1, count)))
    ids = tuple(sorted(uuid7() for _ in range(count)))
    return Flow(owner, rng.choice(("bulk", "interactive")), ids, parents)


def enqueue(conn: psycopg.Connection[Any], flow: Flow) -> None:
    """Enqueue a flow in the caller's transaction."""
    count = len(flow.jobs)
    body = json.dumps({"texts": ["first the one, then the other"], "input": "document"})
    conn.execute(
        _ENQUEUE,
        {
            "owner": flow.owner,
            "latency": flow.latency,
            "ids": list(flow.jobs),
            "kinds": ["embedding"] * count,
            "pools": ["gpu"] * count,
            "units": [1] * count,
            "keep": [True] * count,
            "ttl": [3600] * count,
            "texts": [body] * count,
            "parents": list(flow.parents),
        },
    )
