"""The fake backend is deterministic, says that it is a fake, and fails as it is asked to."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from inference.backends.echo import FAULTS, EchoModel, connect
from inference.catalogue.schema import ModelEntry
from inference.errors import (
    BackendUnavailable,
    BadRequest,
    InferenceError,
    ModelMissing,
    OutOfMemory,
    RateLimited,
    Refused,
    TooLong,
)
from inference.protocol import BackendConfig


def test_vectors_depend_on_the_text_alone() -> None:
    backend = EchoModel()
    together = backend.embed(["up betimes", "and to the office"])
    alone = EchoModel().embed(["and to the office"])
    assert together.shape == (2, 384)
    assert together.dtype == np.float32
    assert np.array_equal(together[1], alone[0])
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    assert abs(float(together[0] @ together[1])) < 0.9


def test_shared_words_make_texts_similar() -> None:
    query, near, far = EchoModel().embed(
        ["dined with my lord", "my lord dined with me at noon", "rain all night"]
    )
    assert query @ near > query @ far + 0.3


def test_the_space_says_that_it_is_a_fake_and_of_which_dimension() -> None:
    space = EchoModel("echo-64").space
    assert space.dimension == 64
    assert "fake" in space.library
    assert "fake" in space.name
    assert space.name != EchoModel().space.name
    assert EchoModel("echo-64").embed(["a", ""]).shape == (2, 64)


@pytest.mark.parametrize("model", ["all-MiniLM-L6-v2", "echo-0", "echo-x"])
def test_an_unknown_model_is_missing_and_says_what_there_is(model: str) -> None:
    entry = ModelEntry(name=model, backend="echo", kinds=("embedding",))
    with pytest.raises(ModelMissing, match="echo-N"):
        connect(BackendConfig("echo", "local")).load(entry)


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
def test_faults_of_the_family(fault: str, error: type[InferenceError]) -> None:
    with pytest.raises(error) as caught:
        EchoModel().embed(["fine", f"secret echo!{fault}"])
    assert "secret" not in str(caught.value)


def test_rate_limited_tells_how_long_to_wait() -> None:
    with pytest.raises(RateLimited) as caught:
        EchoModel().embed(["echo!rate-limited=7.5"])
    assert caught.value.retry_after == 7.5


def test_faults_of_vectors_and_time() -> None:
    backend = EchoModel()
    vectors = backend.embed(["fine", "echo!nan"])
    assert np.isfinite(vectors[0]).all()
    assert not np.isfinite(vectors[1]).all()
    assert not backend.embed(["echo!zero"]).any()
    assert backend.embed(["fine", "echo!wrong-dimension"]).shape == (2, 383)
    with pytest.raises(RuntimeError):
        backend.embed(["echo!raise"])
    began = time.monotonic()
    backend.embed(["echo!sleep=0.1"])
    assert time.monotonic() - began >= 0.1
    assert set(FAULTS) >= {"exit", "raise", "unavailable"}


@pytest.mark.parametrize(("fault", "code"), [("exit", 70), ("segfault", -signal.SIGSEGV)])
def test_a_crash_ends_the_process_at_once(fault: str, code: int) -> None:
    program = f"from inference.backends.echo import EchoModel as E; E().embed(['echo!{fault}'])"
    done = subprocess.run([sys.executable, "-c", program], check=False, timeout=60)
    assert done.returncode == code


def test_memory_runs_out_at_what_was_asked_for() -> None:
    with pytest.raises(MemoryError):
        EchoModel().embed(["echo!memory=32"])


def test_long_texts_are_refused_and_named() -> None:
    with pytest.raises(TooLong) as caught:
        EchoModel().embed(["fine", "x" * 2_000])
    assert caught.value.indices == (1,)


def test_every_error_has_its_own_code_and_a_message() -> None:
    errors = InferenceError.__subclasses__()
    assert len({error.code for error in errors}) == len(errors)
    assert all(str(error()).endswith((".", "?")) for error in errors)


@pytest.mark.parametrize(
    "module",
    [
        "inference.routing.model_registry",
        "inference.backends.sentence_transformers_local",
        "inference.backends.echo",
        "tasks.registry",
        "workers.execution.components",
    ],
)
def test_importing_brings_no_torch(module: str) -> None:
    code = (
        f"import {module}, sys; sys.exit(any(m in sys.modules for m in ('torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
