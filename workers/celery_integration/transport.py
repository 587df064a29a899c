"""The Redis transport, letting nothing but hints through to a worker.

Kombu and Celery trust what they find in a queue: a body that is neither base64 nor a JSON list ends
the worker, and some such messages are put back to end the next one too (kombu and Celery 5.7.0).
Here a message in a lane's queue is read for two things, its kind and its job's id; everything else
of it is left behind.
"""

from __future__ import annotations

import base64
import json
import logging
from typing import Any
from uuid import UUID, uuid4

from kombu.transport import TRANSPORT_ALIASES, redis

from vestry.lanes import KINDS, LANES

log = logging.getLogger(__name__)


def install() -> None:
    """Make `redis://` and `rediss://` mean these transports in this process."""
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = f"{__name__}:{HintTransport.__name__}"


class HintChannel(redis.Channel):  # type: ignore[misc] # kombu ships no types
    """A channel that survives what it cannot read."""

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            # It was popped already, and so is gone: a lost hint costs a second.
            log.warning("a message that is no JSON was dropped (%s)", type(error).__name__)
            return True


class HintTransport(redis.Transport):  # type: ignore[misc] # kombu ships no types
    """Delivers hints as they ought to be, whatever they came as."""

    Channel = HintChannel

    def _deliver(self, message: Any, queue: str) -> None:
        if queue in LANES:
            told = kind_and_job(message)
            if told is None:
                log.warning("a message that is no hint was dropped from %s", queue)
                return
            message = hint(*told, queue)
        super()._deliver(message, queue)


def kind_and_job(message: Any) -> tuple[str, UUID] | None:
    """What a message hints at; None where it is no hint."""
    headers = message.get("headers") if isinstance(message, dict) else None
    if not isinstance(headers, dict) or headers.get("task") not in list(KINDS):
        return None
    try:
        return headers["task"], UUID(headers["id"])
    except (KeyError, ValueError, TypeError, AttributeError):
        return None


def hint(kind: str, job: UUID, lane: str) -> dict[str, Any]:
    """A hint in Celery's message protocol 2, as kombu's Redis transport keeps it."""
    name = str(job)
    embed = dict.fromkeys(("callbacks", "errbacks", "chain", "chord"))
    return {
        "body": base64.b64encode(json.dumps([[name], {}, embed]).encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {
            "lang": "py",
            "task": kind,
            "id": name,
            "root_id": name,
            "parent_id": None,
            "group": None,
            "shadow": None,
            "eta": None,
            "expires": None,
            "retries": 0,
            "timelimit": [None, None],
            "argsrepr": f"('{name}',)",
            "kwargsrepr": "{}",
            "origin": "dispatcher",
            "ignore_result": True,
        },
        "properties": {
            "correlation_id": name,
            "delivery_mode": 1,
            "delivery_info": {"exchange": "", "routing_key": lane},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": str(uuid4()),
        },
    }
