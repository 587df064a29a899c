"""Enqueue flows through the producers' SQL contract: a job, and jobs that wait for it."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg

from vestry.db.operations import uuid7

_ENQUEUE = """SELECT job_id FROM vestry.enqueue_jobs_v1(
  %(owner)s, 'shareable', %(latency)s, p_ids => %(ids)s::uuid[], p_kinds => %(kinds)s::text[],
  p_pools => %(pools)s::text[], p_costs => %(cost)s::int[], p_keep_payload => %(keep)s::bool[],
  p_result_ttl_s => %(ttl)s::int[], p_texts => %(texts)s::text[], p_parents => %(parents)s::int[])"""


@dataclass(frozen=True, slots=True)
class Flow:
    """Jobs in order; `parents` is the 1-based position of each job's parent, None for the root."""

    owner: str
    latency: str
    jobs: tuple[UUID, ...]
    parents: tuple[int | None, ...]


def random_flow(rng: random.Random, owner: str) -> Flow:
    """Make a flow of two to five jobs, each of which waits for an earlier one."""
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
            "cost": [1] * count,
            "keep": [True] * count,
            "ttl": [3600] * count,
            "texts": [body] * count,
            "parents": list(flow.parents),
        },
    )
