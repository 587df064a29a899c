"""Classification jobs as their handler gets them, and what comes of them: for tests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID, uuid4

from inference.routing.router import Router
from tasks.classification import ClassificationHandler
from tasks.protocol import Context, Failed, Job, Outcome, Succeeded
from tests.routing import router
from vestry.crypto.envelope import plain_digest
from vestry.jobs.classification import Classification, ClassificationResult, Label

SECRET = "sekrit-token"
TOPICS = [
    Label("health", "illness pain doctors medicine"),
    Label("money", "income debts savings bills"),
    Label("travel", "journeys trains flights hotels"),
]


class CancelledJobs:
    """These jobs nobody wants any more."""

    def __init__(self, *gone: UUID) -> None:
        self.gone = set(gone)

    def is_lost(self, job_id: UUID) -> bool:
        return job_id in self.gone


def a_context(*gone: UUID) -> Context:
    """Of a batch of Alice's and Bob's."""
    return Context(CancelledJobs(*gone), {owner: _keyed(owner) for owner in ("alice", "bob")})


def _keyed(owner: str) -> Callable[[str, bytes], bytes]:
    return lambda purpose, data: hashlib.sha256(f"{owner}\0{purpose}\0".encode() + data).digest()


def job(text: str, labels: Sequence[Any] = TOPICS, *, task: str | None = None, **more: Any) -> Job:
    """A claimed job; `multi` and `threshold` are the request's, other fields the job's."""
    asked = {name: more.pop(name) for name in ("multi", "threshold") if name in more}
    prepared = Classification(text, labels=labels, **asked).prepare(plain_digest)
    fields: dict[str, Any] = {
        "id": uuid4(), "kind": "classification", "task": task, "owner": "alice",
        "privacy": "shareable", "latency": "bulk", "attempt": 1, "model": None,
        "payload": json.loads(prepared.payload),
    }  # fmt: skip
    return Job(**fields | more)


def run(
    by: Any | Router | ClassificationHandler, *jobs: Job, context: Context | None = None
) -> list[Outcome]:
    """What comes of a batch, served by a handler, by a router, or by one model."""
    handler = by
    if not isinstance(handler, ClassificationHandler):
        made = by if isinstance(by, Router) else router("classification", {"only": by})
        handler = ClassificationHandler(made)
    outcomes = list(handler(jobs, context or a_context()))
    assert len(outcomes) == len(jobs)
    return outcomes


def result(outcome: Outcome) -> ClassificationResult:
    """As the producer reads it."""
    assert isinstance(outcome, Succeeded), outcome
    json.dumps(outcome.result, allow_nan=False)
    return ClassificationResult.from_json(outcome.result)


def failed(outcome: Outcome) -> Failed:
    """A failure that tells nothing of the text."""
    assert isinstance(outcome, Failed), outcome
    assert SECRET not in outcome.message
    return outcome
