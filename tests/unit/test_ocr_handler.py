"""The OCR handler, on a fake model behind the real Router."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid4

import pytest

from inference.catalogue.loader import load
from inference.errors import (
    BackendUnavailable,
    CallCancelled,
    EncryptedFile,
    InferenceError,
)
from inference.ocr.protocol import OcrRequest
from inference.protocol import Cancelled
from inference.routing.policy import RoutingPolicy
from inference.routing.router import Router
from tasks.ocr import OcrHandler
from tasks.protocol import Context, Failed, Job, Outcome, Rerouted, Succeeded
from tests.handler_fakes import CancelledJobs, FakeGuard, LoadedModels
from vestry.crypto.envelope import plain_digest
from vestry.jobs.ocr import Ocr, OcrPage, OcrResult
from vestry.lanes import Pool

SECRET = "sekrit-token"
PNG = b"\x89PNG\r\n\x1a\n" + SECRET.encode()
GOOD = OcrResult.of((OcrPage(1, SECRET, 0.9, source="ocr"),), 1)


class FakeModel:
    """A fake with a prepared result or error, which records its requests."""

    def __init__(self, answer: OcrResult | InferenceError = GOOD) -> None:
        self.answer = answer
        self.requests: list[tuple[bytes, OcrRequest, bool]] = []
        self.barrier = threading.Barrier(1)

    def read(
        self, file: bytes, request: OcrRequest, *, urgent: bool, cancelled: Cancelled
    ) -> OcrResult:
        self.requests.append((file, request, urgent))
        self.barrier.wait(10)
        if cancelled():
            raise CallCancelled
        if isinstance(self.answer, InferenceError):
            raise self.answer
        return self.answer

    def warm_up(self) -> None:
        """There is nothing to warm up."""


def job(payload: dict[str, Any] | None = None, blobs: Any = None, **more: Any) -> Job:
    prepared = Ocr(PNG).prepare(plain_digest)
    fields: dict[str, Any] = {
        "id": uuid4(), "kind": "ocr", "task": None, "owner": "alice", "privacy": "private",
        "latency": "bulk", "model": None,
        "payload": json.loads(prepared.payload) | (payload or {}),
        "blobs": prepared.blobs if blobs is None else blobs,
    }  # fmt: skip
    return Job(**fields | more)


def run(
    model: FakeModel,
    *jobs: Job,
    pool: Pool = Pool.CPU,
    guard: FakeGuard | None = None,
    cancelled_jobs: Sequence[UUID] = (),
) -> list[Outcome]:
    catalogue = load().only({"tesseract": None})
    registry = LoadedModels(catalogue, {entry.name: model for entry in catalogue.models})
    router = Router(RoutingPolicy(catalogue), pool, registry, guard or FakeGuard())
    outcomes = list(OcrHandler(router)(jobs, Context(CancelledJobs(*cancelled_jobs))))
    assert len(outcomes) == len(jobs)
    for outcome in outcomes:
        if isinstance(outcome, Failed):
            assert SECRET not in outcome.message
    return outcomes


def test_file_is_read_with_the_jobs_options() -> None:
    model = FakeModel()
    claimed = job({"languages": ["deu"], "pages": [2, 3], "dpi": 200, "word_boxes": True})
    [outcome] = run(model, claimed)
    assert isinstance(outcome, Succeeded)
    assert outcome.result == GOOD.to_json()
    assert outcome.served is not None
    served = outcome.served
    assert (served.backend, served.model, served.locality) == ("tesseract", "tesseract", "local")
    assert not served.degraded
    assert model.requests == [(PNG, OcrRequest(("deu",), (2, 3), 200, True), False)]


def test_interactive_job_is_urgent_and_task_selects_the_model() -> None:
    model = FakeModel()
    [outcome] = run(model, job(latency="interactive", task="historical"))
    assert isinstance(outcome, Succeeded)
    assert outcome.served is not None
    assert outcome.served.model == "tesseract-finetuned"
    assert [urgent for _, _, urgent in model.requests] == [True]


def test_files_of_a_batch_are_read_in_parallel() -> None:
    model = FakeModel()
    model.barrier = threading.Barrier(4)  # four files must be read at the same time
    assert [type(outcome) for outcome in run(model, *[job() for _ in range(4)])] == [Succeeded] * 4


def test_failed_page_is_part_of_the_result() -> None:
    failed = OcrPage(2, "", error=("damaged_page", "it is damaged"))
    mixed = OcrResult.of((OcrPage(1, "fine"), failed), 2)
    [outcome] = run(FakeModel(mixed), job())
    assert isinstance(outcome, Succeeded)
    assert outcome.result["pages"][1]["error"] == {
        "code": "damaged_page",
        "message": "it is damaged",
    }


@pytest.mark.parametrize(("pages", "message"), [(1, "it is damaged"), (3, "none of 3 pages")])
def test_job_fails_if_every_page_fails(pages: int, message: str) -> None:
    error = ("damaged_page", "it is damaged")
    result = OcrResult.of(tuple(OcrPage(n, "", error=error) for n in range(pages)), pages)
    [outcome] = run(FakeModel(result), job())
    assert isinstance(outcome, Failed)
    assert outcome.code == "damaged_page"
    assert message in outcome.message
    assert not outcome.retryable
    assert outcome.served is not None


def test_unreadable_file_is_not_retryable_and_unavailable_backend_is() -> None:
    [refused] = run(FakeModel(EncryptedFile()), job())
    assert isinstance(refused, Failed)
    assert (refused.code, refused.retryable) == ("encrypted_file", False)
    [later] = run(FakeModel(BackendUnavailable(retry_after=3)), job())
    assert isinstance(later, Failed)
    assert (later.code, later.retryable, later.uncounted) == ("backend_unavailable", True, False)


def test_unhealthy_backend_spends_no_attempt() -> None:
    [outcome] = run(FakeModel(), job(), guard=FakeGuard(tesseract="unavailable"))
    assert isinstance(outcome, Failed)
    assert (outcome.uncounted, outcome.retryable, outcome.retry_after) == (True, True, 7.0)


def test_job_of_another_pool_is_rerouted() -> None:
    [outcome] = run(FakeModel(), job(), pool=Pool.GPU)
    assert outcome == Rerouted(Pool.CPU, "first_choice")


def test_cancelled_job_is_abandoned() -> None:
    cancelled, other = job(), job()
    outcomes = run(FakeModel(), cancelled, other, cancelled_jobs=[cancelled.id])
    assert isinstance(outcomes[0], Failed)
    assert (outcomes[0].code, outcomes[0].retryable) == ("abandoned", True)
    assert isinstance(outcomes[1], Succeeded)


@pytest.mark.parametrize(
    ("payload", "blobs"),
    [
        ({}, {}),
        ({}, {"file": b""}),
        ({"languages": SECRET}, None),
        ({"languages": []}, None),
        ({"languages": [7]}, None),
        ({"dpi": "300"}, None),
        ({"dpi": True}, None),
        ({"pages": [0, 2]}, None),
        ({"pages": [2, 1]}, None),
        ({"pages": SECRET}, None),
        ({"word_boxes": 1}, None),
    ],
)
def test_invalid_payload_fails_alone(payload: dict[str, Any], blobs: Any) -> None:
    model = FakeModel()
    outcomes = run(model, job(payload, blobs), job())
    assert isinstance(outcomes[0], Failed)
    assert outcomes[0].code == "bad_payload"
    assert isinstance(outcomes[1], Succeeded)
    assert len(model.requests) == 1
