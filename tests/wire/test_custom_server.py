"""Embedding and reranking through the `openai` client, by a custom FastAPI server."""

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
from tests.wire.custom_server import DIMENSION, CustomServer, custom_server
from tests.wire.factories import NEEDLE, config, entry

EMBED = entry(name="server-embedding", kinds=["embedding", "rerank"], dimension=DIMENSION,
              query_prefix="query: ", document_prefix="passage: ", quantization="fp32")  # fmt: skip


@pytest.fixture(scope="module")
def running_server() -> Iterator[CustomServer]:
    with custom_server() as running:
        yield running


@pytest.fixture
def server(running_server: CustomServer) -> CustomServer:
    running_server.requests.clear()
    running_server.change_response = lambda response: response
    return running_server


def model(
    server: CustomServer, entry: ModelEntry = EMBED, locality: str = "local"
) -> openai_http.OpenAIModel:
    return openai_http.connect(config(server.url, locality=locality)).load(entry)


@pytest.mark.parametrize("locality", ["local", "cloud"])
def test_vectors_are_numbers_or_base64(server: CustomServer, locality: str) -> None:
    vectors = model(server, locality=locality).embed(["bread", "wine", "oil"])
    expected = EchoModel(f"echo-{DIMENSION}").embed(
        ["passage: bread", "passage: wine", "passage: oil"]
    )
    assert vectors.dtype == np.float32
    assert np.allclose(vectors, expected, atol=1e-6)
    form = {"local": "float", "cloud": "base64"}[locality]
    assert server.requests[0]["encoding_format"] == form


def test_texts_are_sent_in_batches_with_prefix(server: CustomServer) -> None:
    texts = [f"text {n}" for n in range(BATCH_TEXTS + 3)]
    vectors = model(server).embed(texts, "query")
    assert vectors.shape == (len(texts), DIMENSION)
    assert [len(body["input"]) for body in server.requests] == [BATCH_TEXTS, 3]
    assert server.requests[1]["input"][0] == f"query: text {BATCH_TEXTS}"
    assert model(server).embed([]).shape == (0, DIMENSION)
    long = ["word " * 190] * 60
    server.requests.clear()
    model(server).embed(long)
    assert len(server.requests) == 2


def test_space_name_depends_on_the_declared_fields(server: CustomServer) -> None:
    space = model(server).space
    assert server.requests == []
    assert space.name == f"server-embedding.{space.revision[:8]}.{DIMENSION}.fp32"
    others = [
        {"query_prefix": ""},
        {"served_as": "another"},
        {"quantization": "fp16"},
        {"options": {"revision": "2026-11"}},
    ]
    names = {model(server, EMBED.model_copy(update=other)).space.name for other in others}
    assert len(names | {space.name}) == len(others) + 1


def _overflow(response: dict[str, Any]) -> dict[str, Any]:
    response["data"][0]["embedding"][3] = 1e40  # not a float32
    return response


@pytest.mark.parametrize(
    ("change", "kind", "indices"),
    [
        (lambda a: {**a, "data": a["data"][1:]}, BadVectors, (0, 1, 2)),
        (lambda a: {**a, "data": [{**d, "embedding": d["embedding"][1:]} for d in a["data"]]},
         BadVectors, (0, 1, 2)),
        (lambda a: {**a, "data": [{**a["data"][0], "embedding": [1.0]}, *a["data"][1:]]},
         BadVectors, ()),
        (lambda a: {**a, "data": [{**a["data"][0], "embedding": [0.0] * DIMENSION}, *a["data"][1:]]},
         BadVectors, (2,)),
        (_overflow, BadVectors, (2,)),
        (lambda _: {"data": None}, BadAnswer, ()),
        (lambda _: "nonsense", BadAnswer, ()),
        (lambda a: {**a, "data": [{"index": None} for _ in a["data"]]}, BadAnswer, ()),
    ],
)  # fmt: skip
def test_invalid_vectors_are_refused(
    server: CustomServer,
    change: Callable[[Any], Any],
    kind: type[InferenceError],
    indices: tuple[int, ...],
) -> None:
    server.change_response = change
    with pytest.raises(kind) as caught:
        model(server).embed(["a", "b", "c"])
    assert caught.value.indices == indices


def test_too_long_text_is_refused_not_truncated(server: CustomServer) -> None:
    with pytest.raises(TooLong) as caught:
        model(server).embed(["short", f"{NEEDLE} " * 100])
    assert NEEDLE not in str(caught.value)
    assert caught.value.per_text


def test_scores_are_in_the_order_of_passages(server: CustomServer) -> None:
    scores = model(server).rerank("bread and wine", ["oil", "bread and wine", "wine"])
    assert list(scores) == [0.0, 3.0, 1.0]
    assert server.requests[0].keys() == {"model", "query", "documents", "top_n"}
    assert model(server).rerank("bread", []) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda a: {"results": a["results"][1:]},
        lambda _: {"results": [{"index": 0, "relevance_score": "high"}]},
        lambda _: [],
        lambda a: {"results": [{**row, "relevance_score": 1e999} for row in a["results"]]},
    ],
)
def test_invalid_scores_are_refused(server: CustomServer, change: Callable[[Any], Any]) -> None:
    server.change_response = change
    with pytest.raises(InferenceError):
        model(server).rerank("bread", ["a", "b"])


def test_unsupported_endpoint_is_a_missing_model(server: CustomServer) -> None:
    other_path = EMBED.model_copy(update={"options": {"rerank_path": "no/such/path"}})
    with pytest.raises(ModelMissing):
        model(server, other_path).rerank("bread", ["a"])


def test_warm_up_makes_one_request_a_kind(server: CustomServer) -> None:
    model(server).warm_up()
    assert [("input" in body, "query" in body) for body in server.requests] == [
        (True, False),
        (False, True),
    ]
    server.requests.clear()
    model(server, locality="cloud").warm_up()
    assert server.requests == []
