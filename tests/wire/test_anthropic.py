"""The `anthropic` client against a real server of its protocol (llama.cpp's), well and misbehaving."""

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
    malformed,
    rate_limited,
    redirect,
    rewrite,
    slow,
    status,
    until,
)
from tests.wire.making import LABELS, NEEDLE, ask, config, entry


@pytest.fixture
def backend(faulty: FaultServer) -> Iterator[AnthropicBackend]:
    made = anthropic_http.connect(config(faulty.url))
    yield made
    made.close()


def fails(
    backend: AnthropicBackend, kind: type[InferenceError], **request: object
) -> InferenceError:
    with pytest.raises(kind) as caught:
        backend.load(entry()).generate(ask(**request))
    assert type(caught.value) is kind
    assert NEEDLE not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return caught.value


def test_an_answer_streams_in_and_the_system_prompt_stands_apart(
    backend: AnthropicBackend, faulty: FaultServer
) -> None:
    sampling = Sampling(temperature=0.1, top_p=0.9, top_k=5, seed=3)
    answer = backend.load(entry()).generate(ask(sampling=sampling, stop=("xyzzy",)))
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


def test_a_schema_goes_where_the_api_takes_it_or_into_the_prompt(
    backend: AnthropicBackend, faulty: FaultServer
) -> None:
    backend.load(entry()).generate(ask(schema=LABELS))
    backend.load(entry(options={"schema": "instruct"})).generate(ask(schema=LABELS))
    native, instructed = (offer.json() for offer in faulty.calls())
    asked = native["output_config"]["format"]
    assert asked["type"] == "json_schema"
    assert asked["schema"]["properties"] == LABELS["properties"]
    assert "output_config" not in instructed
    assert json.dumps(LABELS) in instructed["system"]


def test_a_schema_that_it_cannot_be_held_to_is_a_bad_request(
    backend: AnthropicBackend, faulty: FaultServer
) -> None:
    fails(backend, BadRequest, schema={"properties": {NEEDLE: {}}})
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
def test_every_misfortune_is_one_of_ours(
    backend: AnthropicBackend, faulty: FaultServer, fault: Fault, kind: type[InferenceError]
) -> None:
    faulty.fault = fault
    fails(backend, kind)
    assert len(faulty.calls()) == 1, "nothing is tried twice"


def test_an_error_inside_a_stream_is_what_it_says(
    backend: AnthropicBackend, faulty: FaultServer
) -> None:
    event = b'event: error\ndata: {"type": "error", "error": {"type": "overloaded_error"}}\n\n'
    faulty.fault = rewrite(b"event: content_block_stop\n", event)
    fails(backend, BackendUnavailable)


def test_a_rate_limit_says_how_long(backend: AnthropicBackend, faulty: FaultServer) -> None:
    # A date is in whole seconds, and is made when it is told.
    for told, seconds, give in (
        (lambda: "7", 7.0, 0.01), (lambda: until(60), 60.0, 5), (lambda: None, None, 0),
    ):  # fmt: skip
        faulty.fault = rate_limited(told())
        assert fails(backend, RateLimited).retry_after == pytest.approx(seconds, abs=give)


def test_a_model_that_will_not_answer_says_so(
    backend: AnthropicBackend, faulty: FaultServer
) -> None:
    faulty.fault = rewrite(b'"stop_reason":"', b'"stop_reason":"refusal","was":"')
    assert backend.load(entry()).generate(ask()).finish_reason == "refusal"


def test_a_prompt_beyond_the_context_is_not_cut(
    backend: AnthropicBackend, faulty: FaultServer
) -> None:
    fails(backend, TooLong, text="word " * 1200)
    # Anthropic's own API has no code for it: a request that it does not take is counted.
    faulty.next(status(400), None, status(400), None)
    fails(backend, TooLong, text="word " * 1200)
    fails(backend, BadRequest)
    assert [offer.path for offer in faulty.calls("count_tokens")] == [
        "/v1/messages/count_tokens"
    ] * 2


def test_what_hangs_or_only_trickles_is_given_up() -> None:
    with FaultServer() as canned:
        made = anthropic_http.connect(config(canned.url, timeout_s=3.0))
        for fault, told in (
            (hang(), "no answer within 3 s"),
            (slow(1.4), "not complete after 3 s"),
        ):
            canned.fault = fault
            with pytest.raises(BackendUnavailable, match=told):
                made.load(entry()).generate(ask())
        canned.fault = None
        assert made.load(entry()).generate(ask()).text == CANNED
        made.close()


def test_an_answer_that_nobody_wants_is_given_up(backend: AnthropicBackend) -> None:
    asked = iter([False, False, False, True])
    with pytest.raises(CallCancelled):
        backend.load(entry()).generate(ask("Tell a story.", max_tokens=400), lambda: next(asked))


def test_the_probe_tells_what_is_there_and_warming_up_costs_nothing(
    backend: AnthropicBackend, faulty: FaultServer
) -> None:
    backend.load(entry()).warm_up()
    assert faulty.offers == []
    assert backend.probe().models == {"SmolLM2-135M-Instruct"}
    faulty.fault = status(401)
    assert backend.probe().detail == "answers with status 401"
    assert faulty.calls() == []
    faulty.fault = None
    made = anthropic_http.connect(config(faulty.url, locality="local"))
    made.load(entry()).warm_up()
    assert faulty.calls()[0].json()["max_tokens"] == 1
    made.close()
