"""The `ollama` client against a fake Ollama with a real llama.cpp server, with and without faults."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import numpy as np
import pytest

from inference.backends import ollama_http
from inference.backends.ollama_http import OllamaBackend
from inference.errors import (
    BackendUnavailable,
    BadAnswer,
    BadRequest,
    BadVectors,
    CallCancelled,
    InferenceError,
    ModelMissing,
    RateLimited,
    TooLong,
    Unauthorised,
)
from inference.protocol import Sampling
from tests.faultserver import (
    Fault,
    FaultServer,
    cut,
    empty,
    end_early,
    hang,
    malformed,
    rate_limited,
    redirect,
    rewrite,
    status,
)
from tests.llama_server import Llama
from tests.ollama_fake import DIMENSION, FakeOllama
from tests.wire.factories import LABELS, NEEDLE, assert_raises, config, entry, prompt

MODELS = {
    "llama3.2:3b": {},
    "nomic-embed-text:latest": {},
    "remote:70b": {"remote_host": "https://ollama.com:443", "remote_model": "remote:70b"},
}


@pytest.fixture(scope="module")
def ollama(llama: Llama) -> Iterator[FakeOllama]:
    with FakeOllama(llama, MODELS) as running:
        yield running


@pytest.fixture
def faulty(ollama: FakeOllama) -> Iterator[FaultServer]:
    ollama.requests.clear()
    with FaultServer(ollama.url) as running:
        yield running


@pytest.fixture
def backend(faulty: FaultServer) -> Iterator[OllamaBackend]:
    backend = ollama_http.connect(config(faulty.url, locality="local", key=None))
    yield backend
    backend.close()


CHAT = entry(name="llama3.2:3b", context=1024)
EMBED = entry(name="nomic-embed-text", kinds="embedding", dimension=DIMENSION, context=2048,
              query_prefix="search_query: ", document_prefix="search_document: ",
              quantization="fp16")  # fmt: skip


def test_answer_is_streamed_and_truncation_is_off(
    backend: OllamaBackend, ollama: FakeOllama
) -> None:
    sampling = Sampling(temperature=0.0, top_k=1, seed=7, min_p=0.1, repeat_penalty=1.1)
    answer = backend.load(CHAT).generate(prompt(sampling=sampling, stop=("xyzzy",)))
    assert answer.text.strip()
    assert answer.finish_reason in {"stop", "length"}
    assert answer.input_tokens is not None
    assert answer.output_tokens is not None
    (body,) = ollama.bodies("/api/chat")
    assert body["truncate"] is False
    assert body["shift"] is False
    assert body["options"] == {
        "temperature": 0.0, "top_k": 1, "seed": 7, "min_p": 0.1, "repeat_penalty": 1.1,
        "num_predict": 12, "num_ctx": 1024, "stop": ["xyzzy"],
    }  # fmt: skip


def test_answer_fits_the_schema(backend: OllamaBackend) -> None:
    answer = backend.load(CHAT).generate(prompt(schema=LABELS, max_tokens=60))
    assert json.loads(answer.text)["label"] in {"psalm", "law"}


def test_keep_alive_follows_the_catalogue(backend: OllamaBackend, ollama: FakeOllama) -> None:
    for model, keep_alive in (
        (CHAT, "5m"),
        (CHAT.model_copy(update={"resident": True}), -1),
        (CHAT.model_copy(update={"options": {"keep_alive": "30m"}}), "30m"),
    ):
        ollama.requests.clear()
        loaded = backend.load(model)
        loaded.warm_up()
        (body,) = ollama.bodies("/api/chat")
        assert (body["messages"], body["keep_alive"]) == ([], keep_alive)
        assert body["options"] == {"num_ctx": 1024}
        loaded.generate(prompt(max_tokens=1))
        assert ollama.bodies("/api/chat")[1]["keep_alive"] == keep_alive


def test_remote_model_is_refused_before_any_content_is_sent(
    backend: OllamaBackend, ollama: FakeOllama, faulty: FaultServer
) -> None:
    for name in ("remote:70b", "gpt-oss:120b-cloud", "anything:cloud"):
        model = entry(name="short", served_as=name, kinds=["generation", "embedding"], dimension=8)
        loaded = backend.load(model)
        for call in (lambda m=loaded: m.generate(prompt()), lambda m=loaded: m.embed([NEEDLE]),
                     loaded.warm_up):  # fmt: skip
            with pytest.raises(ModelMissing, match="remote machines"):
                call()
    with pytest.raises(ModelMissing, match="remote machines"):
        list(backend.pull(entry(name="gpt-oss:120b-cloud")))
    assert not faulty.received(NEEDLE)
    assert {path for path, _ in ollama.requests} == {"/api/show"}


def test_model_that_becomes_remote_is_refused(
    backend: OllamaBackend, ollama: FakeOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = backend.load(CHAT)
    loaded.generate(prompt(max_tokens=1))
    monkeypatch.setattr(ollama_http, "_LOCALITY_TTL_S", 0.0)
    monkeypatch.setitem(ollama.models, "llama3.2:3b", {"remote_host": "https://ollama.com:443"})
    with pytest.raises(ModelMissing):
        loaded.generate(prompt(max_tokens=1))


def test_cloud_backend_may_run_remote_models(faulty: FaultServer, ollama: FakeOllama) -> None:
    other = ollama_http.connect(config(faulty.url, locality="cloud"))
    other.load(entry(name="remote:70b")).generate(prompt(max_tokens=1))
    assert ollama.bodies("/api/show") == []
    assert faulty.calls()[0].headers["authorization"] == "Bearer a cloud's key"
    other.close()


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (status(500), BackendUnavailable),
        (status(503), BackendUnavailable),
        (status(401), Unauthorised),
        (status(404), ModelMissing),
        (status(400), BadRequest),
        (status(400, {"error": "the input length exceeds the context length"}), TooLong),
        (redirect("http://127.0.0.1:1/api/chat"), BackendUnavailable),
        (malformed(), BadAnswer),
        (cut(3), BadAnswer),
        (end_early(3), BadAnswer),
        (empty(), BadAnswer),
        (rewrite(b'"done": true', b'"error": "x"'), BackendUnavailable),
        (rewrite(b'"prompt_eval_count": ', b'"prompt_eval_count": 99'), TooLong),
    ],
    ids=lambda value: value.name if isinstance(value, Fault) else value.__name__,
)
def test_server_faults_are_mapped(
    backend: OllamaBackend, faulty: FaultServer, fault: Fault, kind: type[InferenceError]
) -> None:
    faulty.next(None)  # the request of the model's details
    faulty.fault = fault
    assert_raises(backend, kind, CHAT)
    assert len(faulty.calls("/api/chat")) == 1, "calls are not retried"


def test_rate_limit_has_retry_after(backend: OllamaBackend, faulty: FaultServer) -> None:
    faulty.fault = rate_limited("7")
    assert assert_raises(backend, RateLimited, CHAT).retry_after == 7


def test_too_long_prompt_is_refused_not_truncated(backend: OllamaBackend) -> None:
    assert_raises(backend, TooLong, CHAT, text="word " * 1200)


def test_cancelled_hanging_or_refused_call_ends(
    backend: OllamaBackend, faulty: FaultServer
) -> None:
    polls = iter([False, False, False, True])
    with pytest.raises(CallCancelled):
        backend.load(CHAT).generate(prompt("Tell a story.", max_tokens=400), lambda: next(polls))
    short_timeout = ollama_http.connect(config(faulty.url, locality="local", timeout_s=0.5))
    faulty.next(None, hang())
    start = time.monotonic()
    assert_raises(short_timeout, BackendUnavailable, CHAT)
    assert time.monotonic() - start < 5
    short_timeout.close()
    faulty.stop_listening()
    assert_raises(backend, BackendUnavailable, CHAT)


def test_texts_are_embedded_with_prefixes(backend: OllamaBackend, ollama: FakeOllama) -> None:
    model = backend.load(EMBED)
    vectors = model.embed(["bread", "wine"], "document")
    assert vectors.shape == (2, DIMENSION)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    model.embed(["bread"], "query")
    documents, query = ollama.bodies("/api/embed")
    assert documents["input"] == ["search_document: bread", "search_document: wine"]
    assert query["input"] == ["search_query: bread"]
    assert documents["truncate"] is False


def test_space_name_has_the_digest_of_the_model(backend: OllamaBackend) -> None:
    space = backend.load(EMBED).space
    digest = space.revision
    assert len(digest) == 64
    assert space.name == f"nomic-embed-text.{digest[:8]}.{DIMENSION}.fp16"
    assert (space.query_prefix, space.document_prefix) == ("search_query: ", "search_document: ")
    with pytest.raises(ModelMissing, match="install it"):
        _ = backend.load(EMBED.model_copy(update={"name": "not-there"})).space


def test_embedding_errors_are_mapped(backend: OllamaBackend, faulty: FaultServer) -> None:
    model = backend.load(EMBED)
    with pytest.raises(TooLong):
        model.embed([f"{NEEDLE} " * 400])
    with pytest.raises(BadVectors) as caught:
        backend.load(EMBED.model_copy(update={"dimension": 8})).embed(["a", "b"])
    assert caught.value.indices == (0, 1)
    faulty.fault = malformed()
    with pytest.raises(BadAnswer):
        model.embed(["a"])


def test_models_are_listed_and_pulled_with_progress(backend: OllamaBackend) -> None:
    probe = backend.probe()
    assert probe.reachable
    assert probe.models is not None
    assert {"llama3.2:3b", "nomic-embed-text", "nomic-embed-text:latest"} <= probe.models
    steps = list(backend.pull(entry(name="newcomer:1b")))
    assert steps[0] == ("pulling manifest", 0, 0)
    assert ("pulling 4b5c", 50, 100) in steps
    assert steps[-1][0] == "success"
    with pytest.raises(InferenceError) as caught:
        list(backend.pull(entry(name="no-such:1b")))
    assert "manifest" not in str(caught.value)
