"""The `openai` client against a real llama.cpp server, well and misbehaving."""

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
    malformed,
    rate_limited,
    redirect,
    rewrite,
    slow,
    status,
    until,
)
from tests.llama import Llama
from tests.wire.making import LABELS, NEEDLE, ask, config, entry


@pytest.fixture
def backend(faulty: FaultServer) -> Iterator[OpenAIBackend]:
    made = openai_http.connect(config(f"{faulty.url}/v1"))
    yield made
    made.close()


def fails(backend: OpenAIBackend, kind: type[InferenceError], **request: object) -> InferenceError:
    with pytest.raises(kind) as caught:
        backend.load(entry()).generate(ask(**request))
    assert type(caught.value) is kind
    assert NEEDLE not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return caught.value


def test_an_answer_streams_in_with_its_usage(backend: OpenAIBackend, faulty: FaultServer) -> None:
    answer = backend.load(entry()).generate(ask())
    assert answer.text.strip()
    assert answer.finish_reason in {"stop", "length"}
    assert answer.input_tokens is not None
    assert answer.output_tokens is not None
    assert 0 < answer.output_tokens <= 12 < answer.input_tokens
    (sent,) = faulty.calls("/chat/completions")
    assert sent.json()["stream"] is True
    assert [message["role"] for message in sent.json()["messages"]] == ["system", "user"]


def test_a_schema_is_kept_to(backend: OpenAIBackend, faulty: FaultServer) -> None:
    answer = backend.load(entry()).generate(ask(schema=LABELS, max_tokens=60))
    assert json.loads(answer.text)["label"] in {"psalm", "law"}
    asked = faulty.calls()[0].json()["response_format"]["json_schema"]
    assert (asked["schema"], asked["strict"]) == (LABELS, True)


def test_a_stop_string_ends_it_and_is_left_out(backend: OpenAIBackend) -> None:
    whole = backend.load(entry()).generate(ask(max_tokens=20)).text
    stop = whole[6:9]
    answer = backend.load(entry()).generate(ask(max_tokens=20, stop=(stop,)))
    assert answer.finish_reason == "stop"
    assert answer.text == whole[: whole.index(stop)]


def test_what_a_provider_refuses_is_left_out(faulty: FaultServer) -> None:
    sampling = Sampling(temperature=0.5, top_k=3, min_p=0.1, seed=1, repeat_penalty=1.1)
    for locality, options, expected in (
        ("cloud", {}, {"temperature": 0.5, "seed": 1, "max_completion_tokens": 2}),
        ("local", {}, {"temperature": 0.5, "top_k": 3, "min_p": 0.1, "seed": 1,
                       "repeat_penalty": 1.1, "max_tokens": 2}),
        ("cloud", {"sampling": [], "max_tokens": "max_tokens"}, {"max_tokens": 2}),
        ("local", {"sampling": {"repeat_penalty": "repetition_penalty"}},
         {"repetition_penalty": 1.1, "max_tokens": 2}),
    ):  # fmt: skip
        faulty.offers.clear()
        made = openai_http.connect(config(f"{faulty.url}/v1", locality=locality))
        made.load(entry(options=options)).generate(ask(sampling=sampling, max_tokens=2))
        sent = faulty.calls()[0].json()
        own = {"model", "messages", "stream", "stream_options"}
        assert {name: sent[name] for name in sent.keys() - own} == expected
        made.close()


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
def test_every_misfortune_is_one_of_ours(
    backend: OpenAIBackend, faulty: FaultServer, fault: Fault, kind: type[InferenceError]
) -> None:
    faulty.fault = fault
    fails(backend, kind)
    assert len(faulty.calls()) == 1, "nothing is tried twice"


@pytest.mark.parametrize(
    ("told", "seconds"),
    [("7", 7.0), ("0.5", 0.5), (lambda: until(90), 90.0), (None, None), ("soon", None)],
    ids=["seconds", "half", "date", "nothing", "nonsense"],
)
def test_a_rate_limit_says_how_long(
    backend: OpenAIBackend,
    faulty: FaultServer,
    told: str | Callable[[], str] | None,
    seconds: float | None,
) -> None:
    faulty.fault = rate_limited(told() if callable(told) else told)
    error = fails(backend, RateLimited)
    assert error.retry_after == pytest.approx(seconds, abs=5 if callable(told) else 0.01)


def test_a_server_that_is_overloaded_says_how_long_too(
    backend: OpenAIBackend, faulty: FaultServer
) -> None:
    faulty.fault = status(503, retry_after="4")
    assert fails(backend, BackendUnavailable).retry_after == 4


def test_a_model_that_will_not_answer_says_so(backend: OpenAIBackend, faulty: FaultServer) -> None:
    faulty.fault = rewrite(b'"finish_reason":"', b'"finish_reason":"content_filter","was":"')
    answer = backend.load(entry()).generate(ask())
    assert answer.finish_reason == "refusal"
    assert answer.input_tokens is not None


def test_a_prompt_beyond_the_context_is_not_cut(backend: OpenAIBackend) -> None:
    fails(backend, TooLong, text="word " * 1200)


def test_a_server_that_hangs_is_given_up(faulty: FaultServer) -> None:
    faulty.fault = hang()
    made = openai_http.connect(config(f"{faulty.url}/v1", timeout_s=0.5))
    began = time.monotonic()
    fails(made, BackendUnavailable)
    assert time.monotonic() - began < 5
    made.close()


def test_an_answer_that_only_trickles_is_given_up() -> None:
    with FaultServer() as canned:
        canned.fault = slow(1.4)
        made = openai_http.connect(config(f"{canned.url}/v1", timeout_s=3.0))
        with pytest.raises(BackendUnavailable, match="not complete after 3 s"):
            made.load(entry()).generate(ask())
        made.close()


def test_nobody_there_is_unavailable(faulty: FaultServer, backend: OpenAIBackend) -> None:
    faulty.stop_listening()
    try:
        fails(backend, BackendUnavailable)
        assert not backend.probe().reachable
    finally:
        faulty.listen()
    assert backend.load(entry()).generate(ask()).text


def test_the_probe_tells_what_is_there_and_costs_nothing(
    backend: OpenAIBackend, faulty: FaultServer
) -> None:
    probe = backend.probe()
    assert probe.reachable
    assert probe.models == {"SmolLM2-135M-Instruct"}
    for fault, told in ((status(401), "401"), (malformed(), "sense"), (status(500), "500")):
        faulty.fault = fault
        probe = backend.probe()
        assert not probe.reachable
        assert told in probe.detail
    assert faulty.calls() == []


def test_a_cloud_is_not_warmed_up_and_a_server_of_ones_own_is(faulty: FaultServer) -> None:
    for locality, calls in (("cloud", 0), ("local", 1)):
        made = openai_http.connect(config(f"{faulty.url}/v1", locality=locality))
        made.load(entry()).warm_up()
        assert len(faulty.calls()) == calls
        made.close()


def test_an_answer_that_nobody_wants_is_stopped_at_the_server(llama: Llama) -> None:
    made = openai_http.connect(config(f"{llama.url}/v1", locality="local", key=llama.key))
    pieces = 0

    def enough() -> bool:
        nonlocal pieces
        pieces += 1
        return pieces > 4

    with pytest.raises(CallCancelled):
        made.load(entry()).generate(ask("Tell a story.", max_tokens=900), enough)
    patience = time.monotonic() + 5
    while _at_work(llama):
        assert time.monotonic() < patience, "the server goes on with what nobody reads"
        time.sleep(0.05)
    with pytest.raises(CallCancelled):
        made.load(entry()).generate(ask(), lambda: True)
    made.close()


def _at_work(llama: Llama) -> bool:
    request = urllib.request.Request(  # noqa: S310 - loopback
        f"{llama.url}/metrics", headers={"Authorization": f"Bearer {llama.key}"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - loopback
        lines = answer.read().decode().splitlines()
    return "llamacpp:requests_processing 0" not in lines
