"""The OCR kind's handler, on a fake model behind the real Router."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid4

import pytest

from inference.catalogue.loader import load
from inference.catalogue.schema import BackendEntry
from inference.errors import (
    BackendUnavailable,
    CallCancelled,
    EncryptedFile,
    InferenceError,
)
from inference.ocr.protocol import OcrRequest
from inference.protocol import Cancelled
from inference.routing.model_registry import ModelRegistry, configuration
from inference.routing.policy import Budget, Health, RoutingPolicy
from inference.routing.router import Router
from tasks.ocr import OcrHandler
from tasks.protocol import Context, Failed, Job, Outcome, Rerouted, Succeeded
from vestry.crypto.envelope import plain_digest
from vestry.jobs.ocr import Ocr, OcrPage, OcrResult
from vestry.lanes import Pool

SECRET = "sekrit-token"
PNG = b"\x89PNG\r\n\x1a\n" + SECRET.encode()
GOOD = OcrResult.of((OcrPage(1, SECRET, 0.9, source="ocr"),), 1)


class FakeModel:
    """Answers what it is told to, and remembers what it was asked."""

    def __init__(self, answer: OcrResult | InferenceError = GOOD) -> None:
        self.answer = answer
        self.asked: list[tuple[bytes, OcrRequest, bool]] = []
        self.at_once = 0
        self.meeting = threading.Barrier(1)

    def read(
        self, file: bytes, request: OcrRequest, *, urgent: bool, cancelled: Cancelled
    ) -> OcrResult:
        self.asked.append((file, request, urgent))
        self.meeting.wait(10)
        if cancelled():
            raise CallCancelled
        if isinstance(self.answer, InferenceError):
            raise self.answer
        return self.answer

    def warm_up(self) -> None:
        """Nothing to warm."""


class FakeGuard:
    """Everything is well, but for the backends that are said not to be."""

    def __init__(self, **away: str) -> None:
        self.away = away

    def health(self) -> Health:
        return self.away

    def budget(self) -> Budget:
        return Budget()

    def before_call(self, backend: BackendEntry) -> None:
        """Let it pass."""

    def after_call(self, backend: BackendEntry, error: InferenceError | None) -> None:
        """Take no notice."""

    def wait_s(self, backend: str) -> float:
        del backend
        return 7.0


class CancelledJobs:
    def __init__(self, *gone: UUID) -> None:
        self.gone = set(gone)

    def is_lost(self, job_id: UUID) -> bool:
        return job_id in self.gone


def job(payload: dict[str, Any] | None = None, blobs: Any = None, **more: Any) -> Job:
    made = Ocr(PNG).prepare(plain_digest)
    fields: dict[str, Any] = {
        "id": uuid4(), "kind": "ocr", "task": None, "owner": "alice", "privacy": "private",
        "latency": "bulk", "attempt": 1, "model": None,
        "payload": json.loads(made.payload) | (payload or {}),
        "blobs": made.blobs if blobs is None else blobs,
    }  # fmt: skip
    return Job(**fields | more)


def run(
    model: FakeModel,
    *jobs: Job,
    pool: Pool = Pool.CPU,
    gate: FakeGuard | None = None,
    gone: Sequence[UUID] = (),
) -> list[Outcome]:
    known = load().only({"tesseract": None})
    fleet = ModelRegistry(known, configuration({}, {}))
    for entry in known.models:
        fleet.register(entry.name, model)
    router = Router(RoutingPolicy(known), pool, fleet, gate or FakeGuard())
    outcomes = list(OcrHandler(router)(jobs, Context(CancelledJobs(*gone))))
    assert len(outcomes) == len(jobs)
    for outcome in outcomes:
        if isinstance(outcome, Failed):
            assert SECRET not in outcome.message
    return outcomes


def test_a_file_becomes_its_text_and_a_receipt() -> None:
    model = FakeModel()
    asked = job({"languages": ["deu"], "pages": [2, 3], "dpi": 200, "word_boxes": True})
    [outcome] = run(model, asked)
    assert isinstance(outcome, Succeeded)
    assert outcome.result == GOOD.to_json()
    assert outcome.served is not None
    served = outcome.served
    assert (served.backend, served.model, served.locality) == ("tesseract", "tesseract", "local")
    assert not served.degraded
    assert model.asked == [(PNG, OcrRequest(("deu",), (2, 3), 200, True), False)]


def test_who_waits_goes_first_and_old_print_has_its_own_model() -> None:
    model = FakeModel()
    [outcome] = run(model, job(latency="interactive", task="historical"))
    assert isinstance(outcome, Succeeded)
    assert outcome.served is not None
    assert outcome.served.model == "tesseract-finetuned"
    assert [urgent for _, _, urgent in model.asked] == [True]


def test_a_batchs_files_are_read_together() -> None:
    model = FakeModel()
    model.meeting = threading.Barrier(4)  # nobody passes it alone
    assert [type(outcome) for outcome in run(model, *[job() for _ in range(4)])] == [Succeeded] * 4


def test_pages_that_failed_are_kept_as_such_while_one_succeeded() -> None:
    fault = OcrPage(2, "", error=("damaged_page", "it is damaged"))
    mixed = OcrResult.of((OcrPage(1, "fine"), fault), 2)
    [outcome] = run(FakeModel(mixed), job())
    assert isinstance(outcome, Succeeded)
    assert outcome.result["pages"][1]["error"] == {
        "code": "damaged_page",
        "message": "it is damaged",
    }


@pytest.mark.parametrize(("pages", "told"), [(1, "it is damaged"), (3, "none of 3 pages")])
def test_a_job_fails_where_no_page_succeeded(pages: int, told: str) -> None:
    error = ("damaged_page", "it is damaged")
    result = OcrResult.of(tuple(OcrPage(n, "", error=error) for n in range(pages)), pages)
    [outcome] = run(FakeModel(result), job())
    assert isinstance(outcome, Failed)
    assert outcome.code == "damaged_page"
    assert told in outcome.message
    assert not outcome.retryable
    assert outcome.served is not None


def test_a_file_that_is_no_good_fails_for_good_and_one_that_came_too_early_does_not() -> None:
    [refused] = run(FakeModel(EncryptedFile()), job())
    assert isinstance(refused, Failed)
    assert (refused.code, refused.retryable) == ("encrypted_file", False)
    [later] = run(FakeModel(BackendUnavailable(retry_after=3)), job())
    assert isinstance(later, Failed)
    assert (later.code, later.retryable, later.uncounted) == ("backend_unavailable", True, False)


def test_a_backend_that_may_not_be_called_costs_no_attempt() -> None:
    [outcome] = run(FakeModel(), job(), gate=FakeGuard(tesseract="unavailable"))
    assert isinstance(outcome, Failed)
    assert (outcome.uncounted, outcome.retryable, outcome.retry_after) == (True, True, 7.0)


def test_a_job_of_another_pool_goes_there() -> None:
    [outcome] = run(FakeModel(), job(), pool=Pool.GPU)
    assert outcome == Rerouted(Pool.CPU, "first_choice")


def test_a_job_that_was_taken_away_is_given_up() -> None:
    given_up, kept = job(), job()
    outcomes = run(FakeModel(), given_up, kept, gone=[given_up.id])
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
def test_a_malformed_payload_is_one_clear_failure(payload: dict[str, Any], blobs: Any) -> None:
    model = FakeModel()
    outcomes = run(model, job(payload, blobs), job())
    assert isinstance(outcomes[0], Failed)
    assert outcomes[0].code == "bad_payload"
    assert isinstance(outcomes[1], Succeeded)
    assert len(model.asked) == 1
