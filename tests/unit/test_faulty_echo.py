"""Faults of the echo backend that a text requests."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from inference.catalogue.default_embedding import choose
from inference.catalogue.loader import load
from inference.errors import (
    BackendUnavailable,
    BadRequest,
    CallCancelled,
    InferenceError,
    OutOfMemory,
    RateLimited,
    Refused,
)
from inference.protocol import BackendConfig, GenerationRequest
from inference.routing.model_registry import ModelRegistry
from tests import faulty_echo
from tests.faulty_echo import FaultyEchoModel
from vestry.jobs.generation import Message

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("unavailable", BackendUnavailable),
        ("rate-limited", RateLimited),
        ("refused", Refused),
        ("bad-request", BadRequest),
        ("out-of-memory", OutOfMemory),
    ],
)
def test_named_error_is_raised_without_the_text(fault: str, error: type[InferenceError]) -> None:
    with pytest.raises(error) as caught:
        FaultyEchoModel().embed(["fine", f"secret echo!{fault}"])
    assert "secret" not in str(caught.value)


def test_rate_limit_has_the_requested_wait() -> None:
    with pytest.raises(RateLimited) as caught:
        FaultyEchoModel().embed(["echo!rate-limited=7.5"])
    assert caught.value.retry_after == 7.5


def test_vector_faults_corrupt_delay_or_raise() -> None:
    model = FaultyEchoModel()
    vectors = model.embed(["fine", "echo!nan"])
    assert np.isfinite(vectors[0]).all()
    assert not np.isfinite(vectors[1]).all()
    assert not model.embed(["echo!zero"]).any()
    assert model.embed(["fine", "echo!wrong-dimension"]).shape == (2, 383)
    with pytest.raises(RuntimeError):
        model.embed(["echo!raise"])
    start = time.monotonic()
    model.embed(["echo!sleep=0.1"])
    assert time.monotonic() - start >= 0.1


def test_waiting_generation_is_cancelled() -> None:
    request = GenerationRequest([Message("user", "echo!sleep=60")], 10)
    with pytest.raises(CallCancelled):
        FaultyEchoModel().generate(request, lambda: True)


@pytest.mark.parametrize(("fault", "code"), [("exit", 70), ("segfault", -signal.SIGSEGV)])
def test_crash_ends_process(fault: str, code: int) -> None:
    program = f"from tests.faulty_echo import FaultyEchoModel as M; M().embed(['echo!{fault}'])"
    done = subprocess.run([sys.executable, "-c", program], check=False, timeout=60, cwd=ROOT)
    assert done.returncode == code


def test_memory_fault_raises() -> None:
    with pytest.raises(MemoryError):
        FaultyEchoModel().embed(["echo!memory=32"])


def test_stack_setting_replaces_runtime_of_echo_backend() -> None:
    catalogue = choose(load(), faulty_echo.RUNTIME, "")
    registry = ModelRegistry(catalogue, lambda entry: BackendConfig(entry.name, entry.locality))
    model = registry.model(catalogue.model("echo"))
    assert isinstance(model, FaultyEchoModel)
    assert model.name == "echo"
