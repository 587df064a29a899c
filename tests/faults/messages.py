"""Messages that workers must not trust: duplicates, reordered, forged and malformed ones."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import Any, Final
from uuid import uuid4

import redis

from vestry.lanes import KINDS, LANES
from workers.celery_integration.transport import build_hint
from workers.settings import key_prefix

BURST: Final = 120
"""Approximate number of messages in one burst."""


def forge(broker: redis.Redis, rng: random.Random, jobs: Sequence[str]) -> int:
    """Put a burst of messages into the lanes' queues; return their number.

    Args:
        broker: a client that may write to every queue.
        rng: of all choices.
        jobs: ids of existing jobs in any state, of any lane.
    """
    count = 0
    queues = [key_prefix(lane.privacy) + lane.name for lane in LANES.values()]
    for queue in queues:
        count += _repeat(broker, rng, queue)
    while count < BURST:
        queue = rng.choice(queues)
        lane = queue.split(".", 2)[2]
        broker.lpush(queue, rng.choice(_FORGERIES)(rng, lane, jobs))
        count += 1
    return count


def _repeat(broker: redis.Redis, rng: random.Random, queue: str) -> int:
    """Duplicate the queue's messages, in another order."""
    queued: Any = broker.lrange(queue, 0, 20)
    if not queued:
        return 0
    repeated = list(queued)
    rng.shuffle(repeated)
    broker.rpush(queue, *repeated)
    return len(repeated)


def _of_another_lane(rng: random.Random, lane: str, jobs: Sequence[str]) -> str:
    job = rng.choice(jobs) if jobs else str(uuid4())
    return json.dumps(build_hint(rng.choice(list(KINDS)), job, lane))  # type: ignore[arg-type]


def _of_no_job(rng: random.Random, lane: str, _: Sequence[str]) -> str:
    return json.dumps(build_hint(rng.choice(list(KINDS)), uuid4(), lane))


def _of_unknown_kind(_: random.Random, lane: str, __: Sequence[str]) -> str:
    return json.dumps(build_hint("os.system", uuid4(), lane))


def _not_json(rng: random.Random, _: str, __: Sequence[str]) -> bytes:
    return rng.randbytes(rng.randint(0, 300))


def _other_json(rng: random.Random, _: str, __: Sequence[str]) -> str:
    shapes: tuple[Any, ...] = (
        None, 7, [], {}, "x", {"headers": 1}, {"headers": {"task": ["a"], "id": {}}},
        {"headers": {"task": "embedding"}}, {"headers": {"task": "embedding", "id": "no id"}},
        {"body": "!", "headers": {"task": "embedding", "id": None}, "properties": 3},
    )  # fmt: skip
    return json.dumps(rng.choice(shapes))


def _deep(_: random.Random, __: str, ___: Sequence[str]) -> str:
    return "[" * 20_000


def _damaged(rng: random.Random, lane: str, jobs: Sequence[str]) -> str:
    message = build_hint("embedding", uuid4(), lane)
    message[rng.choice(list(message))] = rng.choice((None, 1, "x", [[]], {"a": {}}))
    if jobs and rng.random() < 0.5:
        message["headers"] = {"task": "embedding", "id": rng.choice(jobs), "eta": "never"}
    return json.dumps(message)


_FORGERIES: Final[tuple[Callable[[random.Random, str, Sequence[str]], str | bytes], ...]] = (
    _of_another_lane, _of_another_lane, _of_no_job, _of_unknown_kind, _not_json, _other_json, _deep,
    _damaged,
)  # fmt: skip
