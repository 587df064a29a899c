"""The `ollama` client against a fake Ollama before a real llama.cpp server, well and misbehaving."""

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
from tests.llama import Llama
from tests.ollama_fake import DIMENSION, FakeOllama
from tests.wire.making import LABELS, NEEDLE, ask, config, entry

MODELS = {
    "llama3.2:3b": {},
    "nomic-embed-text:latest": {},
    "elsewhere:70b": {"remote_host": "https://ollama.com:443", "remote_model": "elsewhere:70b"},
}


@pytest.fixture(scope="module")
def ollama(llama: Llama) -> Iterator[FakeOllama]:
    with FakeOllama(llama, MODELS) as running:
        yield running


@pytest.fixture
def faulty(ollama: FakeOllama) -> Iterator[FaultServer]:
    ollama.asked.clear()
    with FaultServer(ollama.url) as running:
        yield running


@pytest.fixture
def backend(faulty: FaultServer) -> Iterator[OllamaBackend]:
    made = ollama_http.connect(config(faulty.url, locality="local", key=None))
    yield made
    made.close()


CHAT = entry(name="llama3.2:3b", context=1024)
EMBED = entry(name="nomic-embed-text", kinds="embedding", dimension=DIMENSION, context=2048,
              query_prefix="search_query: ", document_prefix="search_document: ",
              quantization="fp16")  # fmt: skip


def fails(backend: OllamaBackend, kind: type[InferenceError], **request: object) -> InferenceError:
    with pytest.raises(kind) as caught:
        backend.load(CHAT).generate(ask(**request))
    assert type(caught.value) is kind
    assert NEEDLE not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return caught.value


def test_an_answer_streams_in_and_nothing_may_be_cut(
    backend: OllamaBackend, ollama: FakeOllama
) -> None:
    sampling = Sampling(temperature=0.0, top_k=1, seed=7, min_p=0.1, repeat_penalty=1.1)
    answer = backend.load(CHAT).generate(ask(sampling=sampling, stop=("xyzzy",)))
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


def test_a_schema_is_kept_to(backend: OllamaBackend) -> None:
    answer = backend.load(CHAT).generate(ask(schema=LABELS, max_tokens=60))
    assert json.loads(answer.text)["label"] in {"psalm", "law"}


def test_what_is_to_stay_loaded_is_kept_by_plan(backend: OllamaBackend, ollama: FakeOllama) -> None:
    for model, kept in (
        (CHAT, "5m"),
        (CHAT.model_copy(update={"resident": True}), -1),
        (CHAT.model_copy(update={"options": {"keep_alive": "30m"}}), "30m"),
    ):
        ollama.asked.clear()
        loaded = backend.load(model)
        loaded.warm_up()
        (body,) = ollama.bodies("/api/chat")
        assert (body["messages"], body["keep_alive"]) == ([], kept)
        assert body["options"] == {"num_ctx": 1024}
        loaded.generate(ask(max_tokens=1))
        assert ollama.bodies("/api/chat")[1]["keep_alive"] == kept


def test_a_model_that_runs_elsewhere_is_refused_before_it_sees_anything(
    backend: OllamaBackend, ollama: FakeOllama, faulty: FaultServer
) -> None:
    for name in ("elsewhere:70b", "gpt-oss:120b-cloud", "anything:cloud"):
        model = entry(name="short", served_as=name, kinds=["generation", "embedding"], dimension=8)
        loaded = backend.load(model)
        for call in (lambda it=loaded: it.generate(ask()), lambda it=loaded: it.embed([NEEDLE]),
                     loaded.warm_up):  # fmt: skip
            with pytest.raises(ModelMissing, match="somebody else's machines"):
                call()
    with pytest.raises(ModelMissing, match="somebody else's machines"):
        list(backend.pull(entry(name="gpt-oss:120b-cloud")))
    assert not faulty.was_offered(NEEDLE)
    assert {path for path, _ in ollama.asked} == {"/api/show"}


def test_a_name_that_comes_to_mean_a_remote_model_is_found_out(
    backend: OllamaBackend, ollama: FakeOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = backend.load(CHAT)
    loaded.generate(ask(max_tokens=1))
    monkeypatch.setattr(ollama_http, "_LOOK_AGAIN_S", 0.0)
    monkeypatch.setitem(ollama.models, "llama3.2:3b", {"remote_host": "https://ollama.com:443"})
    with pytest.raises(ModelMissing):
        loaded.generate(ask(max_tokens=1))


def test_an_ollama_that_is_declared_a_cloud_may_run_models_there(
    faulty: FaultServer, ollama: FakeOllama
) -> None:
    made = ollama_http.connect(config(faulty.url, locality="cloud"))
    made.load(entry(name="elsewhere:70b")).generate(ask(max_tokens=1))
    assert ollama.bodies("/api/show") == []
    assert faulty.calls()[0].headers["authorization"] == "Bearer a cloud's key"
    made.close()


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
def test_every_misfortune_is_one_of_ours(
    backend: OllamaBackend, faulty: FaultServer, fault: Fault, kind: type[InferenceError]
) -> None:
    faulty.next(None)  # the model's description
    faulty.fault = fault
    fails(backend, kind)
    assert len(faulty.calls("/api/chat")) == 1, "nothing is tried twice"


def test_a_rate_limit_says_how_long(backend: OllamaBackend, faulty: FaultServer) -> None:
    faulty.fault = rate_limited("7")
    assert fails(backend, RateLimited).retry_after == 7


def test_a_prompt_beyond_the_context_is_not_cut(backend: OllamaBackend) -> None:
    fails(backend, TooLong, text="word " * 1200)


def test_an_answer_that_nobody_wants_or_that_never_comes_is_given_up(
    backend: OllamaBackend, faulty: FaultServer
) -> None:
    asked = iter([False, False, False, True])
    with pytest.raises(CallCancelled):
        backend.load(CHAT).generate(ask("Tell a story.", max_tokens=400), lambda: next(asked))
    impatient = ollama_http.connect(config(faulty.url, locality="local", timeout_s=0.5))
    faulty.next(None, hang())
    began = time.monotonic()
    fails(impatient, BackendUnavailable)
    assert time.monotonic() - began < 5
    impatient.close()
    faulty.stop_listening()
    fails(backend, BackendUnavailable)


def test_texts_become_vectors_with_the_models_prefixes(
    backend: OllamaBackend, ollama: FakeOllama
) -> None:
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


def test_its_space_is_named_by_the_models_files(backend: OllamaBackend) -> None:
    space = backend.load(EMBED).space
    digest = space.revision
    assert len(digest) == 64
    assert space.name == f"nomic-embed-text.{digest[:8]}.{DIMENSION}.fp16"
    assert (space.query_prefix, space.document_prefix) == ("search_query: ", "search_document: ")
    with pytest.raises(ModelMissing, match="ask for it"):
        _ = backend.load(EMBED.model_copy(update={"name": "not-there"})).space


def test_texts_that_do_not_become_vectors_say_why(
    backend: OllamaBackend, faulty: FaultServer
) -> None:
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
