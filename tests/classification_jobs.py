"""Claimed classification jobs, and their outcomes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID, uuid4

from inference.routing.router import Router
from tasks.classification import ClassificationHandler
from tasks.protocol import Context, Failed, Job, Outcome, Succeeded
from tests.handler_fakes import CancelledJobs, router
from vestry.crypto.envelope import plain_digest
from vestry.jobs.classification import Classification, ClassificationResult, Label

SECRET = "sekrit-token"
TOPICS = [
    Label("health", "illness pain doctors medicine"),
    Label("money", "income debts savings bills"),
    Label("travel", "journeys trains flights hotels"),
]


def context_of(*cancelled: UUID) -> Context:
    """The context of a batch of Alice's and Bob's jobs."""
    digest = {owner: _digest_of(owner) for owner in ("alice", "bob")}
    return Context(CancelledJobs(*cancelled), digest)


def _digest_of(owner: str) -> Callable[[str, bytes], bytes]:
    return lambda purpose, data: hashlib.sha256(f"{owner}\0{purpose}\0".encode() + data).digest()


def job(text: str, labels: Sequence[Any] = TOPICS, *, task: str | None = None, **more: Any) -> Job:
    """A claimed job. `multi` and `threshold` go into the request, other keywords into the job."""
    options = {name: more.pop(name) for name in ("multi", "threshold") if name in more}
    prepared = Classification(text, labels=labels, **options).prepare(plain_digest)
    fields: dict[str, Any] = {
        "id": uuid4(), "kind": "classification", "task": task, "owner": "alice",
        "privacy": "shareable", "latency": "bulk", "model": None,
        "payload": json.loads(prepared.payload),
    }  # fmt: skip
    return Job(**fields | more)


def run(
    target: Any | Router | ClassificationHandler, *jobs: Job, context: Context | None = None
) -> list[Outcome]:
    """Run a batch with a handler, a Router or one model."""
    handler = target
    if not isinstance(handler, ClassificationHandler):
        is_router = isinstance(target, Router)
        handler = ClassificationHandler(
            target if is_router else router("classification", {"only": target})
        )
    outcomes = list(handler(jobs, context or context_of()))
    assert len(outcomes) == len(jobs)
    return outcomes


def result(outcome: Outcome) -> ClassificationResult:
    """The result, as a producer reads it."""
    assert isinstance(outcome, Succeeded), outcome
    json.dumps(outcome.result, allow_nan=False)
    return ClassificationResult.from_json(outcome.result)


def failed(outcome: Outcome) -> Failed:
    """The failure; its message must not contain the text."""
    assert isinstance(outcome, Failed), outcome
    assert SECRET not in outcome.message
    return outcome
