"""The `generation` kind: an answer to messages, as text or as JSON, grounded in passages on request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

from inference.errors import BadAnswer, InferenceError
from inference.protocol import Cancelled, Generated, GenerationModel, GenerationRequest
from inference.remote.egress import on_behalf_of
from inference.routing.policy import Candidate
from inference.routing.router import RerouteRequired, Router
from tasks.generation_payload import GenerationPlan, plan_of
from tasks.grounding import Passage, citations, grounded
from tasks.outcomes import outcome_of_error, served_of
from tasks.protocol import BadPayload, Context, Failed, Job, Outcome, Succeeded
from tasks.structured_output import InvalidJson, parse_json_answer
from vestry.jobs.generation import Message

MAX_REPAIR_ATTEMPTS: Final = 1
"""How often an answer that does not fit its schema is sent back."""

NO_PASSAGES: Final = Failed(
    "no_passages",
    "nothing is indexed in what the answer is to be grounded in: index it first, or ask without "
    "grounding",
)


class InvalidOutput(InferenceError):
    """The answer does not match the JSON schema, even after the repair attempt."""

    default_message = "The model's answer does not match the JSON schema, even when asked again."
    code = "invalid_output"


class CutOutput(InferenceError):
    """The answer reached max_tokens before its JSON was complete."""

    default_message = (
        "The answer was cut at max_tokens before its JSON was complete; ask for more tokens."
    )
    code = "output_cut"


@dataclass(frozen=True, slots=True)
class Written:
    """An answer, what all its calls took, and the passages that were put before it.

    `value` is what the text says as JSON, where a schema was to be fitted.
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
        """One outcome a job, in the batch's order."""
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

            def call(model: GenerationModel, candidate: Candidate) -> Written:
                if not passages:
                    return _write(model, plan.request, cancelled)
                request, used = grounded(plan.request, passages, candidate.model.context)
                return replace(_write(model, request, cancelled), passages=used)

            with on_behalf_of([job.id]):
                answer = self._router.serve(job.routing_request, call)
        except (InferenceError, RerouteRequired) as error:
            return outcome_of_error(error)
        written = answer.value
        served = served_of(answer, written.input_tokens, written.output_tokens)
        return Succeeded(_result(plan, written), served=served)


def _write(model: GenerationModel, request: GenerationRequest, cancelled: Cancelled) -> Written:
    """Ask, and once more with what was wrong where a schema is to be fitted.

    Raises:
        InvalidOutput: it was wrong again.
        CutOutput: it was cut off.
    """
    calls: list[Generated] = []
    messages = tuple(request.messages)
    while True:
        generated = model.generate(replace(request, messages=messages), cancelled)
        calls.append(generated)
        if request.schema is None or generated.finish_reason == "refusal":
            if not generated.text.strip() and generated.finish_reason == "stop":
                raise _paid(BadAnswer("the model answered nothing"), calls)
            return _written(calls)
        try:
            return replace(_written(calls), value=parse_json_answer(generated.text, request.schema))
        except InvalidJson as fault:
            if generated.finish_reason == "length":
                raise _paid(CutOutput(), calls) from None
            if len(calls) > MAX_REPAIR_ATTEMPTS:
                raise _paid(InvalidOutput(), calls) from None
            told = f"That does not fit the JSON schema: {fault}. Answer again, with JSON alone."
            answered = Message("assistant", generated.text.strip() or "(nothing)")
            messages = (*messages, answered, Message("user", told))


def _paid(error: InferenceError, calls: Sequence[Generated]) -> InferenceError:
    written = _written(calls)
    return error.with_usage(written.input_tokens, written.output_tokens)


def _written(calls: Sequence[Generated]) -> Written:
    return Written(
        calls[-1],
        _total([call.input_tokens for call in calls]),
        _total([call.output_tokens for call in calls]),
    )


def _total(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _result(plan: GenerationPlan, written: Written) -> dict[str, Any]:
    text = written.generated.text
    return {
        "text": text,
        **({} if plan.request.schema is None else {"json": written.value}),
        "finish_reason": written.generated.finish_reason,
        "usage": {"input_tokens": written.input_tokens, "output_tokens": written.output_tokens},
        "citations": citations(text, written.passages) if written.passages else [],
    }
