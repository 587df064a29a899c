"""The `generation` kind: an answer to messages, as text or as JSON, grounded in passages on request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

from inference.errors import BadAnswer, InferenceError
from inference.protocol import Cancelled, Generated, GenerationModel, GenerationRequest, Sampling
from inference.remote.egress import on_behalf_of
from inference.routing.policy import Candidate
from inference.routing.router import RerouteRequired, Router
from tasks.grounding import Passage, citations, grounded
from tasks.protocol import (
    BadPayload,
    Context,
    Failed,
    Job,
    Outcome,
    Succeeded,
    outcome_of_error,
    served_of,
)
from tasks.structured_output import generate_json, schema_error, total_tokens
from vestry.errors import InvalidInput
from vestry.jobs.generation import Grounding, Message

DEFAULT_MAX_TOKENS: Final = 512
_ROLES: Final = ("system", "user", "assistant")
_SAMPLING: Final[Mapping[str, type]] = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "seed": int,
    "presence_penalty": float,
    "frequency_penalty": float,
    "repeat_penalty": float,
}

NO_PASSAGES: Final = Failed(
    "no_passages",
    "nothing is indexed in the sources that the answer is to be grounded in: index something first, or "
    "ask without grounding",
)


class InvalidOutput(InferenceError):
    """The answer does not match the JSON schema, even after the repair attempt."""

    default_message = (
        "The model's answer does not match the JSON schema, even after the repair attempt."
    )
    code = "invalid_output"


class CutOutput(InferenceError):
    """The answer reached max_tokens before its JSON was complete."""

    default_message = (
        "The answer was cut at max_tokens before its JSON was complete; raise max_tokens."
    )
    code = "output_cut"


@dataclass(frozen=True, slots=True)
class GenerationPlan:
    """One job's request, read from its payload."""

    request: GenerationRequest = field(repr=False)
    grounding: Grounding | None


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, the tokens of all its calls, and the passages put before the question.

    Attributes:
        value: the JSON in the answer, if a schema was given.
    """

    generated: Generated
    input_tokens: int | None
    output_tokens: int | None
    value: Any = field(default=None, repr=False)
    passages: Sequence[Passage] = field(default=(), repr=False)


class GenerationHandler:
    """Runs generation jobs, one after the other. Safe to call from several threads."""

    def __init__(self, router: Router) -> None:
        self._router = router

    def __call__(self, batch: Sequence[Job], context: Context) -> Sequence[Outcome]:
        """One outcome per job, in the batch's order."""
        return [self._run(job, context) for job in batch]

    def _run(self, job: Job, context: Context) -> Outcome:
        try:
            plan = plan_of(job)
        except BadPayload as error:
            return Failed("bad_payload", str(error))
        cancelled = partial(context.cancellation.is_lost, job.id)
        passages: Sequence[Passage] = ()
        try:
            if plan.grounding is not None:
                passages = context.passage_search.passages(job, plan.grounding)
                if not passages:
                    return NO_PASSAGES

            def call(model: GenerationModel, candidate: Candidate) -> Answer:
                if not passages:
                    return _generate(model, plan.request, cancelled)
                request, used = grounded(plan.request, passages, candidate.model.context)
                return replace(_generate(model, request, cancelled), passages=used)

            with on_behalf_of([job.id]):
                result = self._router.serve(job.routing_request, call)
        except (InferenceError, RerouteRequired) as error:
            return outcome_of_error(error)
        answer = result.value
        served = served_of(result, answer.input_tokens, answer.output_tokens)
        return Succeeded(_result(plan, answer), served=served)


def _generate(model: GenerationModel, request: GenerationRequest, cancelled: Cancelled) -> Answer:
    """Call a model, a second time if its answer does not fit the schema.

    Raises:
        InvalidOutput: the second answer does not fit either.
        CutOutput: an answer that does not fit was cut at `max_tokens`.
        BadAnswer: the answer is empty.
    """
    if request.schema is None:
        generated = model.generate(request, cancelled)
        tokens = total_tokens([generated])
        if not generated.text.strip() and generated.finish_reason == "stop":
            raise BadAnswer("the model's answer is empty").with_usage(*tokens)
        return Answer(generated, *tokens)
    output = generate_json(
        model,
        request,
        cancelled,
        schema=request.schema,
        objection="That does not fit the JSON schema",
        repair_cut=False,
        convert=lambda value: value,
    )
    answer = Answer(output.generated, output.input_tokens, output.output_tokens, output.value)
    if output.fits or output.generated.finish_reason == "refusal":
        return answer
    was_cut = output.generated.finish_reason == "length"
    error = CutOutput() if was_cut else InvalidOutput()
    raise error.with_usage(answer.input_tokens, answer.output_tokens)


def _result(plan: GenerationPlan, answer: Answer) -> dict[str, Any]:
    text = answer.generated.text
    return {
        "text": text,
        **({} if plan.request.schema is None else {"json": answer.value}),
        "finish_reason": answer.generated.finish_reason,
        "usage": {"input_tokens": answer.input_tokens, "output_tokens": answer.output_tokens},
        "citations": citations(text, answer.passages) if answer.passages else [],
    }


def plan_of(job: Job) -> GenerationPlan:
    """Read a job's payload.

    Raises:
        BadPayload: it is malformed; the message names the field and nothing of its content.
    """
    payload = job.payload
    messages = payload.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadPayload("messages is not a list with at least one entry")
    request = GenerationRequest(
        messages=tuple(_message(index, value) for index, value in enumerate(messages)),
        max_tokens=_positive("max_tokens", payload.get("max_tokens", DEFAULT_MAX_TOKENS)),
        stop=_strings("stop", payload.get("stop", [])),
        sampling=_sampling(payload.get("sampling") or {}),
        schema=_schema(payload.get("schema")),
    )
    if request.messages[-1].role != "user":
        raise BadPayload("the last message is not the user's")
    return GenerationPlan(request, _grounding(payload.get("grounding")))


def _message(index: int, value: Any) -> Message:
    if not isinstance(value, Mapping) or value.get("role") not in _ROLES:
        raise BadPayload(f"messages[{index}] has no role of {', '.join(_ROLES)}")
    content = value.get("content")
    if not isinstance(content, str) or not content.strip():
        raise BadPayload(f"messages[{index}] has no content")
    return Message(value["role"], content)


def _sampling(value: Any) -> Sampling:
    if not isinstance(value, Mapping) or set(value) - set(_SAMPLING):
        raise BadPayload("sampling has an unknown parameter")
    parameters: dict[str, Any] = {}
    for name, kind in _SAMPLING.items():
        number = value.get(name)
        if number is None:
            continue
        if isinstance(number, bool) or not isinstance(number, (int, kind)):
            raise BadPayload(f"sampling.{name} is not a number")
        parameters[name] = number
    return Sampling(**parameters)


def _schema(value: Any) -> Mapping[str, Any] | None:
    if value is None:
        return None
    error = schema_error(value)
    if error is not None:
        raise BadPayload(f"schema {error}")
    checked: Mapping[str, Any] = value
    return checked


def _grounding(value: Any) -> Grounding | None:
    if value is None:
        return None
    if not isinstance(value, Mapping) or value.get("query") is None:
        raise BadPayload("grounding has no query")
    try:
        return Grounding(
            query=value["query"],
            sources=value.get("sources") or (),
            own_sources=value.get("own_sources"),
            limit=value.get("limit", 4),
        )
    except InvalidInput as error:
        raise BadPayload(str(error)) from None


def _positive(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BadPayload(f"{name} is not a positive whole number")
    return value


def _strings(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise BadPayload(f"{name} is not a list of strings")
    return tuple(value)
