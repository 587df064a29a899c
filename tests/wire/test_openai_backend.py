"""The `openai` client against a real llama.cpp server, with and without faults."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable, Iterator

import pytest

from inference.backends import openai_http
from inference.backends.openai_http import OpenAIBackend
from inference.errors import (
    BackendUnavailable,
    BadAnswer,
    BadRequest,
    CallCancelled,
    InferenceError,
    ModelMissing,
    RateLimited,
    Refused,
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
    http_date_in,
    malformed,
    rate_limited,
    redirect,
    rewrite,
    slow,
    status,
)
from tests.llama_server import Llama
from tests.waiting import eventually
from tests.wire.factories import LABELS, assert_raises, config, entry, prompt


@pytest.fixture
def backend(faulty: FaultServer) -> Iterator[OpenAIBackend]:
    backend = openai_http.connect(config(f"{faulty.url}/v1"))
    yield backend
    backend.close()


def test_answer_is_streamed_with_usage(backend: OpenAIBackend, faulty: FaultServer) -> None:
    answer = backend.load(entry()).generate(prompt())
    assert answer.text.strip()
    assert answer.finish_reason in {"stop", "length"}
    assert answer.input_tokens is not None
    assert answer.output_tokens is not None
    assert 0 < answer.output_tokens <= 12 < answer.input_tokens
    (sent,) = faulty.calls("/chat/completions")
    assert sent.json()["stream"] is True
    assert [message["role"] for message in sent.json()["messages"]] == ["system", "user"]


def test_answer_fits_the_schema(backend: OpenAIBackend, faulty: FaultServer) -> None:
    answer = backend.load(entry()).generate(prompt(schema=LABELS, max_tokens=60))
    assert json.loads(answer.text)["label"] in {"psalm", "law"}
    json_schema = faulty.calls()[0].json()["response_format"]["json_schema"]
    assert (json_schema["schema"], json_schema["strict"]) == (LABELS, True)


def test_stop_string_ends_the_answer_and_is_left_out(backend: OpenAIBackend) -> None:
    whole = backend.load(entry()).generate(prompt(max_tokens=20)).text
    stop = whole[6:9]
    answer = backend.load(entry()).generate(prompt(max_tokens=20, stop=(stop,)))
    assert answer.finish_reason == "stop"
    assert answer.text == whole[: whole.index(stop)]


def test_unsupported_parameters_are_left_out(faulty: FaultServer) -> None:
    sampling = Sampling(temperature=0.5, top_k=3, min_p=0.1, seed=1, repeat_penalty=1.1)
    for locality, options, expected in (
        ("cloud", {}, {"temperature": 0.5, "seed": 1, "max_completion_tokens": 2}),
        ("local", {}, {"temperature": 0.5, "top_k": 3, "min_p": 0.1, "seed": 1,
                       "repeat_penalty": 1.1, "max_tokens": 2}),
        ("cloud", {"sampling": [], "max_tokens": "max_tokens"}, {"max_tokens": 2}),
        ("local", {"sampling": {"repeat_penalty": "repetition_penalty"}},
         {"repetition_penalty": 1.1, "max_tokens": 2}),
    ):  # fmt: skip
        faulty.requests.clear()
        other = openai_http.connect(config(f"{faulty.url}/v1", locality=locality))
        other.load(entry(options=options)).generate(prompt(sampling=sampling, max_tokens=2))
        sent = faulty.calls()[0].json()
        own = {"model", "messages", "stream", "stream_options"}
        assert {name: sent[name] for name in sent.keys() - own} == expected
        other.close()


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (status(500), BackendUnavailable),
        (status(503), BackendUnavailable),
        (status(529), BackendUnavailable),
        (status(401), Unauthorised),
        (status(403), Unauthorised),
        (status(400), BadRequest),
        (status(404), ModelMissing),
        (status(501), ModelMissing),
        (status(413), TooLong),
        (status(400, {"error": {"code": "context_length_exceeded"}}), TooLong),
        (status(400, {"error": {"code": "content_policy_violation"}}), Refused),
        (status(429, {"error": {"code": "insufficient_quota"}}), RateLimited),
        (redirect("http://127.0.0.1:1/v1/chat/completions"), BackendUnavailable),
        (malformed(), BadAnswer),
        (cut(3), BadAnswer),
        (end_early(3), BadAnswer),
        (empty(), BadAnswer),
        (rewrite(b'"finish_reason":"', b'"finish_reason":"un'), BadAnswer),
    ],
    ids=lambda value: value.name if isinstance(value, Fault) else value.__name__,
)
def test_server_faults_are_mapped(
    backend: OpenAIBackend, faulty: FaultServer, fault: Fault, kind: type[InferenceError]
) -> None:
    faulty.fault = fault
    assert_raises(backend, kind)
    assert len(faulty.calls()) == 1, "calls are not retried"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("7", 7.0), ("0.5", 0.5), (lambda: http_date_in(90), 90.0), (None, None), ("soon", None)],
    ids=["seconds", "half", "date", "nothing", "nonsense"],
)
def test_rate_limit_has_retry_after(
    backend: OpenAIBackend,
    faulty: FaultServer,
    value: str | Callable[[], str] | None,
    seconds: float | None,
) -> None:
    faulty.fault = rate_limited(value() if callable(value) else value)
    error = assert_raises(backend, RateLimited)
    assert error.retry_after == pytest.approx(seconds, abs=5 if callable(value) else 0.01)


def test_overloaded_server_has_retry_after(backend: OpenAIBackend, faulty: FaultServer) -> None:
    faulty.fault = status(503, retry_after="4")
    assert assert_raises(backend, BackendUnavailable).retry_after == 4


def test_refusal_is_a_finish_reason(backend: OpenAIBackend, faulty: FaultServer) -> None:
    faulty.fault = rewrite(b'"finish_reason":"', b'"finish_reason":"content_filter","was":"')
    answer = backend.load(entry()).generate(prompt())
    assert answer.finish_reason == "refusal"
    assert answer.input_tokens is not None


def test_too_long_prompt_is_refused_not_truncated(backend: OpenAIBackend) -> None:
    assert_raises(backend, TooLong, text="word " * 1200)


def test_hanging_server_times_out(faulty: FaultServer) -> None:
    faulty.fault = hang()
    other = openai_http.connect(config(f"{faulty.url}/v1", timeout_s=0.5))
    start = time.monotonic()
    assert_raises(other, BackendUnavailable)
    assert time.monotonic() - start < 5
    other.close()


def test_slow_stream_times_out() -> None:
    with FaultServer() as canned:
        canned.fault = slow(1.4)
        other = openai_http.connect(config(f"{canned.url}/v1", timeout_s=3.0))
        with pytest.raises(BackendUnavailable, match="not complete after 3 s"):
            other.load(entry()).generate(prompt())
        other.close()


def test_unreachable_server_is_unavailable(faulty: FaultServer, backend: OpenAIBackend) -> None:
    faulty.stop_listening()
    try:
        assert_raises(backend, BackendUnavailable)
        assert not backend.probe().reachable
    finally:
        faulty.listen()
    assert backend.load(entry()).generate(prompt()).text


def test_probe_lists_models_without_generating(backend: OpenAIBackend, faulty: FaultServer) -> None:
    probe = backend.probe()
    assert probe.reachable
    assert probe.models == {"SmolLM2-135M-Instruct"}
    for fault, detail in ((status(401), "401"), (malformed(), "malformed"), (status(500), "500")):
        faulty.fault = fault
        probe = backend.probe()
        assert not probe.reachable
        assert detail in probe.detail
    assert faulty.calls() == []


def test_local_server_is_warmed_up_and_cloud_is_not(faulty: FaultServer) -> None:
    for locality, calls in (("cloud", 0), ("local", 1)):
        other = openai_http.connect(config(f"{faulty.url}/v1", locality=locality))
        other.load(entry()).warm_up()
        assert len(faulty.calls()) == calls
        other.close()


def test_cancelled_call_stops_the_server(llama: Llama) -> None:
    other = openai_http.connect(config(f"{llama.url}/v1", locality="local", key=llama.key))
    pieces = 0

    def cancelled() -> bool:
        nonlocal pieces
        pieces += 1
        return pieces > 4

    with pytest.raises(CallCancelled):
        other.load(entry()).generate(prompt("Tell a story.", max_tokens=900), cancelled)
    eventually(lambda: not _is_generating(llama), within=5)
    with pytest.raises(CallCancelled):
        other.load(entry()).generate(prompt(), lambda: True)
    other.close()


def _is_generating(llama: Llama) -> bool:
    request = urllib.request.Request(  # noqa: S310 - loopback
        f"{llama.url}/metrics", headers={"Authorization": f"Bearer {llama.key}"}
    )
    with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310 - loopback
        lines = response.read().decode().splitlines()
    return "llamacpp:requests_processing 0" not in lines
