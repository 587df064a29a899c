"""The Redis transport, which passes only hints to a worker.

Kombu and Celery do not validate the messages of a queue: a body that is neither base64 nor a JSON list
ends the worker, and some such messages are requeued to end the next one too (kombu and Celery 5.7.0).
Of a message in a lane's queue, this transport keeps the kind and the job's id, and rebuilds the rest.
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
    """Register this transport for `redis://` and `rediss://` in this process."""
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = f"{__name__}:{HintTransport.__name__}"


class HintChannel(redis.Channel):  # type: ignore[misc] # kombu ships no types
    """A channel that drops a message it cannot decode."""

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            # It has been popped from the queue: a lost hint costs one second.
            log.warning("undecodable message dropped (%s)", type(error).__name__)
            return True


class HintTransport(redis.Transport):  # type: ignore[misc] # kombu ships no types
    """Delivers each hint rebuilt, and drops any other message in a lane's queue."""

    Channel = HintChannel

    def _deliver(self, message: Any, queue: str) -> None:
        if queue in LANES:
            parsed = parse_hint(message)
            if parsed is None:
                log.warning("malformed hint dropped from %s", queue)
                return
            message = build_hint(*parsed, queue)
        super()._deliver(message, queue)


def parse_hint(message: Any) -> tuple[str, UUID] | None:
    """Kind and job id of a hint; None for any other message."""
    headers = message.get("headers") if isinstance(message, dict) else None
    if not isinstance(headers, dict) or headers.get("task") not in list(KINDS):
        return None
    try:
        return headers["task"], UUID(headers["id"])
    except (KeyError, ValueError, TypeError, AttributeError):
        return None


def build_hint(kind: str, job: UUID, lane: str) -> dict[str, Any]:
    """A hint as a message of Celery's protocol 2, in the form of kombu's Redis transport."""
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
