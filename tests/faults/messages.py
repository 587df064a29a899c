"""Messages that nobody should believe: duplicates, reordered, forged and malformed ones."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import Any, Final
from uuid import uuid4

import redis

from vestry.lanes import KINDS, LANES
from workers.celery_integration.transport import hint
from workers.settings import key_prefix

A_BURST: Final = 120
"""Messages of one burst, about."""


def forge(broker: redis.Redis, rng: random.Random, jobs: Sequence[str]) -> int:
    """Put a burst of them into the lanes' queues; how many.

    Args:
        broker: may write everywhere.
        rng: all choices.
        jobs: ids of jobs that exist: done, running or queued, of any lane.
    """
    made = 0
    queues = [key_prefix(lane.privacy) + lane.name for lane in LANES.values()]
    for queue in queues:
        made += _repeat(broker, rng, queue)
    while made < A_BURST:
        queue = rng.choice(queues)
        lane = queue.split(".", 2)[2]
        broker.lpush(queue, rng.choice(_FORGERIES)(rng, lane, jobs))
        made += 1
    return made


def _repeat(broker: redis.Redis, rng: random.Random, queue: str) -> int:
    """Everything in the queue once more, and in another order."""
    found: Any = broker.lrange(queue, 0, 20)
    if not found:
        return 0
    again = list(found)
    rng.shuffle(again)
    broker.rpush(queue, *again)
    return len(again)


def _of_another_lane(rng: random.Random, lane: str, jobs: Sequence[str]) -> str:
    job = rng.choice(jobs) if jobs else str(uuid4())
    return json.dumps(hint(rng.choice(list(KINDS)), job, lane))  # type: ignore[arg-type]


def _of_nobody(rng: random.Random, lane: str, _: Sequence[str]) -> str:
    return json.dumps(hint(rng.choice(list(KINDS)), uuid4(), lane))


def _of_no_kind(_: random.Random, lane: str, __: Sequence[str]) -> str:
    return json.dumps(hint("os.system", uuid4(), lane))


def _no_json(rng: random.Random, _: str, __: Sequence[str]) -> bytes:
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


def _spoilt(rng: random.Random, lane: str, jobs: Sequence[str]) -> str:
    message = hint("embedding", uuid4(), lane)
    message[rng.choice(list(message))] = rng.choice((None, 1, "x", [[]], {"a": {}}))
    if jobs and rng.random() < 0.5:
        message["headers"] = {"task": "embedding", "id": rng.choice(jobs), "eta": "never"}
    return json.dumps(message)


_FORGERIES: Final[tuple[Callable[[random.Random, str, Sequence[str]], str | bytes], ...]] = (
    _of_another_lane, _of_another_lane, _of_nobody, _of_no_kind, _no_json, _other_json, _deep, _spoilt,
)  # fmt: skip
