"""The generation kind's handler: text, JSON held to a schema, grounding, and what goes wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID, uuid4

import pytest

from inference.errors import BadRequest, CallCancelled, InferenceError
from inference.protocol import Generated, GenerationRequest
from tasks.generation import GenerationHandler
from tasks.grounding import Passage, PassageQuery
from tasks.protocol import Context, Failed, Job, Outcome, Rerouted, Succeeded
from tasks.structured_output import InvalidJson, parse_json_answer
from tests.routing import router
from vestry import Generation, Grounding
from vestry.crypto.envelope import plain_digest
from vestry.jobs.generation import Message
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


class Model:
    """Says what it is told to, and remembers what it was asked: a fake."""

    def __init__(self, *answers: str | Generated | InferenceError) -> None:
        self.answers = list(answers)
        self.asked: list[GenerationRequest] = []

    def generate(self, request: GenerationRequest, cancelled: Callable[[], bool]) -> Generated:
        self.asked.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, InferenceError):
            raise answer
        if cancelled():
            raise CallCancelled
        return answer if isinstance(answer, Generated) else Generated(answer, "stop", 10, 3)


class CancelledJobs:
    def __init__(self, *gone: UUID) -> None:
        self.gone = set(gone)

    def is_lost(self, job_id: UUID) -> bool:
        return job_id in self.gone


class FakePassageSearch:
    def __init__(self, *passages: Passage) -> None:
        self.found = passages
        self.asked: list[PassageQuery] = []

    def passages(self, job: Job, grounding: PassageQuery) -> Sequence[Passage]:
        del job
        self.asked.append(grounding)
        return self.found[: grounding.limit]


def job(asked: Generation | dict[str, Any], **more: Any) -> Job:
    payload = asked if isinstance(asked, dict) else json.loads(asked.prepare(plain_digest).payload)
    fields: dict[str, Any] = {
        "id": uuid4(), "kind": "generation", "task": None, "owner": "ann", "privacy": "private",
        "latency": "bulk", "attempt": 1, "model": None, "payload": payload,
    }  # fmt: skip
    return Job(**fields | more)


def handler_of(model: Model, **more: Any) -> GenerationHandler:
    return GenerationHandler(router("generation", {"m": model}, **more))


def run(model: Model, asked: Any, library: FakePassageSearch | None = None, **more: Any) -> Outcome:
    one = asked if isinstance(asked, Job) else job(asked)
    context = Context(CancelledJobs(), {}, library or FakePassageSearch())
    (outcome,) = handler_of(model, **more)([one], context)
    return outcome


def succeeded(outcome: Outcome) -> dict[str, Any]:
    assert isinstance(outcome, Succeeded), outcome
    json.dumps(outcome.result, allow_nan=False)
    return outcome.result


def failed(outcome: Outcome) -> Failed:
    assert isinstance(outcome, Failed), outcome
    assert SECRET not in outcome.message
    return outcome


def test_an_answer_with_its_usage() -> None:
    model = Model("God is love.")
    asked = Generation(
        SECRET, system="Be brief.", stop=["."], max_tokens=7, temperature=0.5, top_k=3, seed=1
    )
    outcome = run(model, asked)
    assert succeeded(outcome) == {
        "text": "God is love.", "finish_reason": "stop", "citations": [],
        "usage": {"input_tokens": 10, "output_tokens": 3},
    }  # fmt: skip
    (request,) = model.asked
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


def test_json_that_fits_is_given_as_a_value() -> None:
    for text in ('{"mood": "glad"}', '```json\n{"mood": "glad"}\n```', ' {"mood":"glad"}\n'):
        result = succeeded(run(Model(text), Generation("How?", schema=SCHEMA)))
        assert result["json"] == {"mood": "glad"}


@pytest.mark.parametrize(
    "wrong", ["happy", '{"mood": "cross"}', '{"mood": "glad", "why": "x"}', "[", "", "[" * 100_000]
)
def test_json_that_does_not_fit_is_sent_back_once(wrong: str) -> None:
    model = Model(wrong, '{"mood": "sad"}')
    result = succeeded(run(model, Generation("How?", schema=SCHEMA)))
    assert result["json"] == {"mood": "sad"}
    assert result["usage"] == {"input_tokens": 20, "output_tokens": 6}
    assert [message.role for message in model.asked[1].messages] == ["user", "assistant", "user"]


def test_json_that_never_fits_is_a_clear_failure_and_no_more_calls() -> None:
    model = Model("x", SECRET)
    failure = failed(run(model, Generation("How?", schema=SCHEMA)))
    assert (failure.code, failure.retryable) == ("invalid_output", False)
    assert len(model.asked) == 2


def test_json_that_was_cut_says_so() -> None:
    cut = Generated('{"mood": "gl', "length", 10, 3)
    assert failed(run(Model(cut), Generation("How?", schema=SCHEMA))).code == "output_cut"


def test_a_refusal_is_an_answer() -> None:
    refused = Generated("", "refusal", 10, 0)
    assert succeeded(run(Model(refused), Generation("How?")))["finish_reason"] == "refusal"
    assert succeeded(run(Model(refused), Generation("How?", schema=SCHEMA)))["json"] is None


def test_nothing_at_all_is_tried_again() -> None:
    failure = failed(run(Model(" "), Generation("How?")))
    assert (failure.code, failure.retryable) == ("bad_answer", True)


@pytest.mark.parametrize(
    ("schema", "code"),
    [
        ({"type": "nonsense"}, "bad_payload"),
        ({"$ref": "http://127.0.0.1:9/schema.json"}, "invalid_output"),
        ({"$ref": "#/$defs/none"}, "invalid_output"),
    ],
)
def test_a_schema_that_cannot_be_used_is_told_and_nothing_is_fetched(
    schema: dict[str, Any], code: str
) -> None:
    assert failed(run(Model("1", "2"), Generation("How?", schema=schema))).code == code


def test_an_answer_rests_on_passages_that_are_searched_first() -> None:
    model, library = Model("You were ill [2], and then well [3][9]."), FakePassageSearch(*PASSAGES)
    grounding = Grounding(sources=["kjv"], own_sources=["diary"], limit=3)
    result = succeeded(run(model, Generation("Was I ill?", grounding=grounding), library))
    assert library.asked == [PassageQuery("Was I ill?", ("kjv",), ("diary",), 3)]
    (request,) = model.asked
    question = request.messages[-1].content
    assert "[1] (1660-01-01) entry 1" in question
    assert "[4]" not in question
    assert question.endswith("Question: Was I ill?")
    assert [(c["passage"], c["document"], c["marked"]) for c in result["citations"]] == [
        (2, "d2", True), (3, "d3", True),
    ]  # fmt: skip


def test_an_answer_that_names_no_passage_has_all_that_it_was_shown() -> None:
    result = succeeded(
        run(
            Model("No idea."),
            Generation("?", grounding=Grounding()),
            FakePassageSearch(*PASSAGES),
        )
    )
    assert [c["passage"] for c in result["citations"]] == [1, 2, 3, 4]
    assert {c["marked"] for c in result["citations"]} == {False}


def test_passages_that_a_small_model_has_no_room_for_are_left_out() -> None:
    model = Model("[1]")
    asked = Generation("?", max_tokens=64, grounding=Grounding())
    result = succeeded(
        run(model, asked, FakePassageSearch(*PASSAGES), entries={"m": {"context": 256}})
    )
    assert "[2]" in model.asked[0].messages[-1].content
    assert "[4]" not in model.asked[0].messages[-1].content
    assert [c["passage"] for c in result["citations"]] == [1]


def test_nothing_to_rest_on_is_told_and_the_model_is_not_asked() -> None:
    model = Model()
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
def test_a_payload_that_no_library_wrote_is_one_error(payload: dict[str, Any]) -> None:
    assert failed(run(Model(), job(payload))).code == "bad_payload"


def test_what_the_backend_says_of_a_request_is_the_job_s_and_its_neighbours_go_on() -> None:
    handler = handler_of(Model(BadRequest(), "fine"))
    jobs = [job(Generation("a")), job(Generation("b"))]
    first, second = handler(jobs, Context(CancelledJobs()))
    assert failed(first).code == "bad_request"
    assert succeeded(second)["text"] == "fine"


def test_a_job_that_belongs_elsewhere_goes_there() -> None:
    outcome = run(Model(), job(Generation("a"), privacy="shareable"), cloud=("m",))
    assert isinstance(outcome, Rerouted)
    assert outcome.pool is Pool.CLOUD


def test_a_job_that_is_taken_away_stops() -> None:
    one = job(Generation("a"))
    (outcome,) = handler_of(Model("late"))([one], Context(CancelledJobs(one.id)))
    assert failed(outcome).code == "abandoned"


def test_messages_are_a_conversation() -> None:
    turns = [Message("user", "a"), Message("assistant", "b"), Message("user", "c")]
    model = Model("d")
    run(model, Generation(messages=turns))
    assert [message.content for message in model.asked[0].messages] == ["a", "b", "c"]


@pytest.mark.parametrize("text", ["9" * 5000, "NaN", "[Infinity]", "{", "[" * 100_000])
def test_what_is_no_json_of_everybody_s_is_a_fault_of_the_answer(text: str) -> None:
    with pytest.raises(InvalidJson):
        parse_json_answer(text, {})
