"""Embedding and reranking through the `openai` client, by a FastAPI server of one's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from inference.backends import openai_http
from inference.backends.echo import EchoModel
from inference.catalogue.schema import ModelEntry
from inference.errors import BadAnswer, BadVectors, InferenceError, ModelMissing, TooLong
from inference.remote.embedding import BATCH_TEXTS
from tests.wire.making import NEEDLE, config, entry
from tests.wire.own_server import DIMENSION, Own, own_server

EMBED = entry(name="own-embedding", kinds=["embedding", "rerank"], dimension=DIMENSION,
              query_prefix="query: ", document_prefix="passage: ", quantization="fp32")  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[Own]:
    with own_server() as running:
        yield running


@pytest.fixture
def own(server: Own) -> Own:
    server.asked.clear()
    server.spoil = lambda answer: answer
    return server


def model(own: Own, entry: ModelEntry = EMBED, locality: str = "local") -> openai_http.OpenAIModel:
    return openai_http.connect(config(own.url, locality=locality)).load(entry)


@pytest.mark.parametrize("locality", ["local", "cloud"])
def test_vectors_arrive_as_numbers_or_in_base64(own: Own, locality: str) -> None:
    vectors = model(own, locality=locality).embed(["bread", "wine", "oil"])
    expected = EchoModel(f"echo-{DIMENSION}").embed(
        ["passage: bread", "passage: wine", "passage: oil"]
    )
    assert vectors.dtype == np.float32
    assert np.allclose(vectors, expected, atol=1e-6)
    form = {"local": "float", "cloud": "base64"}[locality]
    assert own.asked[0]["encoding_format"] == form


def test_texts_go_in_batches_and_queries_by_their_prefix(own: Own) -> None:
    texts = [f"text {n}" for n in range(BATCH_TEXTS + 3)]
    vectors = model(own).embed(texts, "query")
    assert vectors.shape == (len(texts), DIMENSION)
    assert [len(body["input"]) for body in own.asked] == [BATCH_TEXTS, 3]
    assert own.asked[1]["input"][0] == f"query: text {BATCH_TEXTS}"
    assert model(own).embed([]).shape == (0, DIMENSION)
    long = ["word " * 190] * 60
    own.asked.clear()
    model(own).embed(long)
    assert len(own.asked) == 2


def test_a_space_is_named_by_all_that_is_known_of_it(own: Own) -> None:
    space = model(own).space
    assert own.asked == []
    assert space.name == f"own-embedding.{space.revision[:8]}.{DIMENSION}.fp32"
    others = [
        {"query_prefix": ""},
        {"served_as": "another"},
        {"quantization": "fp16"},
        {"options": {"revision": "2026-11"}},
    ]
    names = {model(own, EMBED.model_copy(update=other)).space.name for other in others}
    assert len(names | {space.name}) == len(others) + 1


def _nan(answer: dict[str, Any]) -> dict[str, Any]:
    answer["data"][0]["embedding"][3] = 1e40  # no float32
    return answer


@pytest.mark.parametrize(
    ("spoil", "kind", "places"),
    [
        (lambda a: {**a, "data": a["data"][1:]}, BadVectors, (0, 1, 2)),
        (lambda a: {**a, "data": [{**d, "embedding": d["embedding"][1:]} for d in a["data"]]},
         BadVectors, (0, 1, 2)),
        (lambda a: {**a, "data": [{**a["data"][0], "embedding": [1.0]}, *a["data"][1:]]},
         BadVectors, ()),
        (lambda a: {**a, "data": [{**a["data"][0], "embedding": [0.0] * DIMENSION}, *a["data"][1:]]},
         BadVectors, (2,)),
        (_nan, BadVectors, (2,)),
        (lambda _: {"data": None}, BadAnswer, ()),
        (lambda _: "nonsense", BadAnswer, ()),
        (lambda a: {**a, "data": [{"index": None} for _ in a["data"]]}, BadAnswer, ()),
    ],
)  # fmt: skip
def test_vectors_that_are_none_are_found_out(
    own: Own, spoil: Callable[[Any], Any], kind: type[InferenceError], places: tuple[int, ...]
) -> None:
    own.spoil = spoil
    with pytest.raises(kind) as caught:
        model(own).embed(["a", "b", "c"])
    assert caught.value.indices == places


def test_a_text_that_is_too_long_is_not_cut(own: Own) -> None:
    with pytest.raises(TooLong) as caught:
        model(own).embed(["short", f"{NEEDLE} " * 100])
    assert NEEDLE not in str(caught.value)
    assert caught.value.per_text


def test_passages_are_scored_in_their_order(own: Own) -> None:
    scores = model(own).rerank("bread and wine", ["oil", "bread and wine", "wine"])
    assert list(scores) == [0.0, 3.0, 1.0]
    assert own.asked[0].keys() == {"model", "query", "documents", "top_n"}
    assert model(own).rerank("bread", []) == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda a: {"results": a["results"][1:]},
        lambda _: {"results": [{"index": 0, "relevance_score": "high"}]},
        lambda _: [],
        lambda a: {"results": [{**row, "relevance_score": 1e999} for row in a["results"]]},
    ],
)
def test_scores_that_are_none_are_found_out(own: Own, spoil: Callable[[Any], Any]) -> None:
    own.spoil = spoil
    with pytest.raises(InferenceError):
        model(own).rerank("bread", ["a", "b"])


def test_what_the_server_does_not_serve_is_a_missing_model(own: Own) -> None:
    elsewhere = EMBED.model_copy(update={"options": {"rerank_path": "no/such/path"}})
    with pytest.raises(ModelMissing):
        model(own, elsewhere).rerank("bread", ["a"])


def test_warming_up_asks_once_for_each_kind(own: Own) -> None:
    model(own).warm_up()
    assert [("input" in body, "query" in body) for body in own.asked] == [
        (True, False),
        (False, True),
    ]
    own.asked.clear()
    model(own, locality="cloud").warm_up()
    assert own.asked == []
