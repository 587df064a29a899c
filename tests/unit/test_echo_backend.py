"""The echo backend is deterministic, and its space is marked as a fake."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from inference.backends.echo import EchoModel, connect
from inference.catalogue.schema import ModelEntry
from inference.errors import InferenceError, ModelMissing, TooLong
from inference.protocol import BackendConfig


def test_vector_depends_on_text_alone() -> None:
    backend = EchoModel()
    together = backend.embed(["up betimes", "and to the office"])
    alone = EchoModel().embed(["and to the office"])
    assert together.shape == (2, 384)
    assert together.dtype == np.float32
    assert np.array_equal(together[1], alone[0])
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    assert abs(float(together[0] @ together[1])) < 0.9


def test_texts_with_shared_words_are_similar() -> None:
    query, near, far = EchoModel().embed(
        ["dined with my lord", "my lord dined with me at noon", "rain all night"]
    )
    assert query @ near > query @ far + 0.3


def test_space_is_marked_as_fake_and_has_requested_dimension() -> None:
    space = EchoModel("echo-64").space
    assert space.dimension == 64
    assert "fake" in space.library
    assert "fake" in space.name
    assert space.name != EchoModel().space.name
    assert EchoModel("echo-64").embed(["a", ""]).shape == (2, 64)


@pytest.mark.parametrize("model", ["all-MiniLM-L6-v2", "echo-0", "echo-x"])
def test_unknown_model_is_missing_and_known_ones_are_named(model: str) -> None:
    entry = ModelEntry(name=model, backend="echo", kinds=("embedding",))
    with pytest.raises(ModelMissing, match="echo-N"):
        connect(BackendConfig("echo", "local")).load(entry)


def test_long_text_is_refused_with_its_index() -> None:
    with pytest.raises(TooLong) as caught:
        EchoModel().embed(["fine", "x" * 2_000])
    assert caught.value.indices == (1,)


def test_errors_have_distinct_codes_and_messages() -> None:
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
def test_import_does_not_load_torch(module: str) -> None:
    code = (
        f"import {module}, sys; sys.exit(any(m in sys.modules for m in ('torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
