"""The generation handler: text, JSON of a schema, grounding, errors."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import pytest

from inference.errors import BadRequest
from inference.protocol import Generated
from tasks.generation import GenerationHandler
from tasks.grounding import Passage
from tasks.protocol import Context, Failed, Job, Outcome, Rerouted, Succeeded
from tasks.structured_output import InvalidJson, parse_json_answer
from tests.handler_fakes import CancelledJobs, FakePassageSearch, ScriptedModel, router
from vestry import Generation, Grounding, Message
from vestry.crypto.envelope import plain_digest
from vestry.lanes import Pool

SECRET = "sekrit-prayer"
SCHEMA = {
    "type": "object",
    "properties": {"mood": {"enum": ["glad", "sad"]}},
    "required": ["mood"],
    "additionalProperties": False,
}
PASSAGES = [
    Passage("ann", "diary", f"d{n}", f"1660-01-0{n}", 0.9 - n / 10, f"entry {n} " + "word " * 30)
    for n in range(1, 5)
]


def job(request: Generation | dict[str, Any], **more: Any) -> Job:
    payload = (
        request if isinstance(request, dict) else json.loads(request.prepare(plain_digest).payload)
    )
    fields: dict[str, Any] = {
        "id": uuid4(), "kind": "generation", "task": None, "owner": "ann", "privacy": "private",
        "latency": "bulk", "model": None, "payload": payload,
    }  # fmt: skip
    return Job(**fields | more)


def handler_of(model: ScriptedModel, **more: Any) -> GenerationHandler:
    return GenerationHandler(router("generation", {"m": model}, **more))


def run(
    model: ScriptedModel, request: Any, search: FakePassageSearch | None = None, **more: Any
) -> Outcome:
    claimed = request if isinstance(request, Job) else job(request)
    context = Context(CancelledJobs(), {}, search or FakePassageSearch())
    (outcome,) = handler_of(model, **more)([claimed], context)
    return outcome


def succeeded(outcome: Outcome) -> dict[str, Any]:
    assert isinstance(outcome, Succeeded), outcome
    json.dumps(outcome.result, allow_nan=False)
    return outcome.result


def failed(outcome: Outcome) -> Failed:
    assert isinstance(outcome, Failed), outcome
    assert SECRET not in outcome.message
    return outcome


def test_answer_has_its_usage() -> None:
    model = ScriptedModel("God is love.")
    generation = Generation(
        SECRET, system="Be brief.", stop=["."], max_tokens=7, temperature=0.5, top_k=3, seed=1
    )
    outcome = run(model, generation)
    assert succeeded(outcome) == {
        "text": "God is love.", "finish_reason": "stop", "citations": [],
        "usage": {"input_tokens": 10, "output_tokens": 3},
    }  # fmt: skip
    (request,) = model.requests
    assert [(m.role, m.content) for m in request.messages] == [
        ("system", "Be brief."), ("user", SECRET),
    ]  # fmt: skip
    assert (request.max_tokens, request.stop, request.schema) == (7, (".",), None)
    assert (request.sampling.temperature, request.sampling.top_k, request.sampling.seed) == (
        0.5,
        3,
        1,
    )
    assert isinstance(outcome, Succeeded)
    assert outcome.served is not None
    assert (outcome.served.input_tokens, outcome.served.output_tokens) == (10, 3)


def test_valid_json_is_returned_as_value() -> None:
    for text in ('{"mood": "glad"}', '```json\n{"mood": "glad"}\n```', ' {"mood":"glad"}\n'):
        result = succeeded(run(ScriptedModel(text), Generation("How?", schema=SCHEMA)))
        assert result["json"] == {"mood": "glad"}


@pytest.mark.parametrize(
    "wrong", ["happy", '{"mood": "cross"}', '{"mood": "glad", "why": "x"}', "[", "", "[" * 100_000]
)
def test_invalid_json_is_repaired_once(wrong: str) -> None:
    model = ScriptedModel(wrong, '{"mood": "sad"}')
    result = succeeded(run(model, Generation("How?", schema=SCHEMA)))
    assert result["json"] == {"mood": "sad"}
    assert result["usage"] == {"input_tokens": 20, "output_tokens": 6}
    assert [message.role for message in model.requests[1].messages] == ["user", "assistant", "user"]


def test_invalid_json_after_repair_fails_the_job() -> None:
    model = ScriptedModel("x", SECRET)
    failure = failed(run(model, Generation("How?", schema=SCHEMA)))
    assert (failure.code, failure.retryable) == ("invalid_output", False)
    assert len(model.requests) == 2


def test_cut_json_fails_without_repair() -> None:
    cut = Generated('{"mood": "gl', "length", 10, 3)
    assert failed(run(ScriptedModel(cut), Generation("How?", schema=SCHEMA))).code == "output_cut"


def test_refusal_is_a_result() -> None:
    refused = Generated("", "refusal", 10, 0)
    assert succeeded(run(ScriptedModel(refused), Generation("How?")))["finish_reason"] == "refusal"
    assert succeeded(run(ScriptedModel(refused), Generation("How?", schema=SCHEMA)))["json"] is None


def test_empty_answer_is_retryable() -> None:
    failure = failed(run(ScriptedModel(" "), Generation("How?")))
    assert (failure.code, failure.retryable) == ("bad_answer", True)


@pytest.mark.parametrize(
    ("schema", "code"),
    [
        ({"type": "nonsense"}, "bad_payload"),
        ({"$ref": "http://127.0.0.1:9/schema.json"}, "invalid_output"),
        ({"$ref": "#/$defs/none"}, "invalid_output"),
    ],
)
def test_unusable_schema_fails_and_fetches_nothing(schema: dict[str, Any], code: str) -> None:
    assert failed(run(ScriptedModel("1", "2"), Generation("How?", schema=schema))).code == code


def test_answer_cites_the_passages_in_its_prompt() -> None:
    model, search = (
        ScriptedModel("You were ill [2], and then well [3][9]."),
        FakePassageSearch(*PASSAGES),
    )
    grounding = Grounding(sources=["kjv"], own_sources=["diary"], limit=3)
    result = succeeded(run(model, Generation("Was I ill?", grounding=grounding), search))
    assert search.queries == [Grounding("Was I ill?", ("kjv",), ("diary",), 3)]
    (request,) = model.requests
    question = request.messages[-1].content
    assert "[1] (1660-01-01) entry 1" in question
    assert "[4]" not in question
    assert question.endswith("Question: Was I ill?")
    assert [(c["passage"], c["document"], c["marked"]) for c in result["citations"]] == [
        (2, "d2", True), (3, "d3", True),
    ]  # fmt: skip


def test_answer_without_citation_cites_all_passages() -> None:
    result = succeeded(
        run(
            ScriptedModel("No idea."),
            Generation("?", grounding=Grounding()),
            FakePassageSearch(*PASSAGES),
        )
    )
    assert [c["passage"] for c in result["citations"]] == [1, 2, 3, 4]
    assert {c["marked"] for c in result["citations"]} == {False}


def test_passages_over_the_context_are_left_out() -> None:
    model = ScriptedModel("[1]")
    generation = Generation("?", max_tokens=64, grounding=Grounding())
    result = succeeded(
        run(model, generation, FakePassageSearch(*PASSAGES), entries={"m": {"context": 256}})
    )
    assert "[2]" in model.requests[0].messages[-1].content
    assert "[4]" not in model.requests[0].messages[-1].content
    assert [c["passage"] for c in result["citations"]] == [1]


def test_grounding_without_passages_fails_without_a_call() -> None:
    model = ScriptedModel()
    assert failed(run(model, Generation("?", grounding=Grounding()))).code == "no_passages"


@pytest.mark.parametrize(
    "payload",
    [
        {}, {"messages": []}, {"messages": [SECRET]}, {"messages": [{"role": "king", "content": "x"}]},
        {"messages": [{"role": "assistant", "content": "x"}]},
        {"messages": [{"role": "user", "content": " "}]},
        {"messages": [{"role": "user", "content": "x"}], "max_tokens": 0},
        {"messages": [{"role": "user", "content": "x"}], "stop": SECRET},
        {"messages": [{"role": "user", "content": "x"}], "sampling": {SECRET: 1}},
        {"messages": [{"role": "user", "content": "x"}], "sampling": {"top_k": 1.5}},
        {"messages": [{"role": "user", "content": "x"}], "schema": []},
        {"messages": [{"role": "user", "content": "x"}], "grounding": {"sources": ["a"]}},
    ],
)  # fmt: skip
def test_invalid_payload_fails(payload: dict[str, Any]) -> None:
    assert failed(run(ScriptedModel(), job(payload))).code == "bad_payload"


def test_bad_request_fails_its_own_job() -> None:
    handler = handler_of(ScriptedModel(BadRequest(), "fine"))
    jobs = [job(Generation("a")), job(Generation("b"))]
    first, second = handler(jobs, Context(CancelledJobs()))
    assert failed(first).code == "bad_request"
    assert succeeded(second)["text"] == "fine"


def test_job_of_another_pool_is_rerouted() -> None:
    outcome = run(ScriptedModel(), job(Generation("a"), privacy="shareable"), cloud=("m",))
    assert isinstance(outcome, Rerouted)
    assert outcome.pool is Pool.CLOUD


def test_cancelled_job_stops() -> None:
    cancelled = job(Generation("a"))
    context = Context(CancelledJobs(cancelled.id))
    (outcome,) = handler_of(ScriptedModel("late"))([cancelled], context)
    assert failed(outcome).code == "abandoned"


def test_messages_are_passed_in_order() -> None:
    messages = [Message("user", "a"), Message("assistant", "b"), Message("user", "c")]
    model = ScriptedModel("d")
    run(model, Generation(messages=messages))
    assert [message.content for message in model.requests[0].messages] == ["a", "b", "c"]


@pytest.mark.parametrize("text", ["9" * 5000, "NaN", "[Infinity]", "{", "[" * 100_000])
def test_nonstandard_json_is_invalid(text: str) -> None:
    with pytest.raises(InvalidJson):
        parse_json_answer(text, {})
