"""The `anthropic` client against a server of its protocol (llama.cpp's), with and without faults."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from inference.backends import anthropic_http
from inference.backends.anthropic_http import AnthropicBackend
from inference.errors import (
    BackendUnavailable,
    BadAnswer,
    BadRequest,
    CallCancelled,
    InferenceError,
    ModelMissing,
    RateLimited,
    TooLong,
    Unauthorised,
)
from inference.protocol import Sampling
from tests.faultserver import (
    CANNED,
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
from tests.wire.factories import LABELS, NEEDLE, assert_raises, config, entry, prompt


@pytest.fixture
def backend(faulty: FaultServer) -> Iterator[AnthropicBackend]:
    backend = anthropic_http.connect(config(faulty.url))
    yield backend
    backend.close()


def test_answer_is_streamed_and_system_prompt_is_separate(
    backend: AnthropicBackend, faulty: FaultServer
) -> None:
    sampling = Sampling(temperature=0.1, top_p=0.9, top_k=5, seed=3)
    answer = backend.load(entry()).generate(prompt(sampling=sampling, stop=("xyzzy",)))
    assert answer.text.strip()
    assert answer.finish_reason in {"stop", "length"}
    assert answer.input_tokens is not None
    assert answer.input_tokens > 12
    assert answer.output_tokens is not None
    (sent,) = faulty.calls("/v1/messages")
    body = sent.json()
    assert body["system"] == "Be brief."
    assert [message["role"] for message in body["messages"]] == ["user"]
    assert body.keys() == {"model", "max_tokens", "messages", "system", "stop_sequences", "stream"}


def test_schema_is_native_or_in_the_prompt(backend: AnthropicBackend, faulty: FaultServer) -> None:
    backend.load(entry()).generate(prompt(schema=LABELS))
    backend.load(entry(options={"schema": "instruct"})).generate(prompt(schema=LABELS))
    native, instructed = (request.json() for request in faulty.calls())
    output_format = native["output_config"]["format"]
    assert output_format["type"] == "json_schema"
    assert output_format["schema"]["properties"] == LABELS["properties"]
    assert "output_config" not in instructed
    assert json.dumps(LABELS) in instructed["system"]


def test_unsupported_schema_is_a_bad_request(
    backend: AnthropicBackend, faulty: FaultServer
) -> None:
    assert_raises(backend, BadRequest, schema={"properties": {NEEDLE: {}}})
    assert faulty.calls() == []


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (status(500), BackendUnavailable),
        (status(529, {"type": "error", "error": {"type": "overloaded_error"}}), BackendUnavailable),
        (status(401), Unauthorised),
        (status(403), Unauthorised),
        (status(404), ModelMissing),
        (status(413), TooLong),
        (redirect("http://127.0.0.1:1/v1/messages"), BackendUnavailable),
        (malformed(), BadAnswer),
        (cut(3), BadAnswer),
        (end_early(3), BadAnswer),
        (empty(), BadAnswer),
        (rewrite(b'"stop_reason":"', b'"stop_reason":"un'), BadAnswer),
        (rewrite(b"message_start", b"error"), BackendUnavailable),
    ],
    ids=lambda value: value.name if isinstance(value, Fault) else value.__name__,
)
def test_server_faults_are_mapped(
    backend: AnthropicBackend, faulty: FaultServer, fault: Fault, kind: type[InferenceError]
) -> None:
    faulty.fault = fault
    assert_raises(backend, kind)
    assert len(faulty.calls()) == 1, "calls are not retried"


def test_error_inside_a_stream_is_mapped(backend: AnthropicBackend, faulty: FaultServer) -> None:
    event = b'event: error\ndata: {"type": "error", "error": {"type": "overloaded_error"}}\n\n'
    faulty.fault = rewrite(b"event: content_block_stop\n", event)
    assert_raises(backend, BackendUnavailable)


def test_rate_limit_has_retry_after(backend: AnthropicBackend, faulty: FaultServer) -> None:
    # A date has whole seconds, and the wait is relative to the time at which it is read.
    for value, seconds, tolerance in (
        (lambda: "7", 7.0, 0.01), (lambda: http_date_in(60), 60.0, 5), (lambda: None, None, 0),
    ):  # fmt: skip
        faulty.fault = rate_limited(value())
        assert assert_raises(backend, RateLimited).retry_after == pytest.approx(
            seconds, abs=tolerance
        )


def test_refusal_is_a_finish_reason(backend: AnthropicBackend, faulty: FaultServer) -> None:
    faulty.fault = rewrite(b'"stop_reason":"', b'"stop_reason":"refusal","was":"')
    assert backend.load(entry()).generate(prompt()).finish_reason == "refusal"


def test_too_long_prompt_is_refused_not_truncated(
    backend: AnthropicBackend, faulty: FaultServer
) -> None:
    assert_raises(backend, TooLong, text="word " * 1200)
    # Anthropic's own API has no code for it: the tokens of a refused request are counted.
    faulty.next(status(400), None, status(400), None)
    assert_raises(backend, TooLong, text="word " * 1200)
    assert_raises(backend, BadRequest)
    assert [request.path for request in faulty.calls("count_tokens")] == [
        "/v1/messages/count_tokens"
    ] * 2


def test_hanging_or_slow_stream_times_out() -> None:
    with FaultServer() as canned:
        other = anthropic_http.connect(config(canned.url, timeout_s=3.0))
        for fault, message in (
            (hang(), "no answer within 3 s"),
            (slow(1.4), "not complete after 3 s"),
        ):
            canned.fault = fault
            with pytest.raises(BackendUnavailable, match=message):
                other.load(entry()).generate(prompt())
        canned.fault = None
        assert other.load(entry()).generate(prompt()).text == CANNED
        other.close()


def test_cancelled_call_ends(backend: AnthropicBackend) -> None:
    polls = iter([False, False, False, True])
    with pytest.raises(CallCancelled):
        backend.load(entry()).generate(prompt("Tell a story.", max_tokens=400), lambda: next(polls))


def test_probe_lists_models_and_cloud_is_not_warmed_up(
    backend: AnthropicBackend, faulty: FaultServer
) -> None:
    backend.load(entry()).warm_up()
    assert faulty.requests == []
    assert backend.probe().models == {"SmolLM2-135M-Instruct"}
    faulty.fault = status(401)
    assert backend.probe().detail == "answers with status 401"
    assert faulty.calls() == []
    faulty.fault = None
    other = anthropic_http.connect(config(faulty.url, locality="local"))
    other.load(entry()).warm_up()
    assert faulty.calls()[0].json()["max_tokens"] == 1
    other.close()
