"""A generation job's payload, read and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from inference.protocol import GenerationRequest, Sampling
from tasks.protocol import BadPayload, Job
from tasks.structured_output import schema_fault
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


@dataclass(frozen=True, slots=True)
class GenerationPlan:
    """What one job wants written."""

    request: GenerationRequest = field(repr=False)
    grounding: Grounding | None


def plan_of(job: Job) -> GenerationPlan:
    """Read a job's payload.

    Raises:
        BadPayload: it is malformed; the message names the field and nothing of it.
    """
    payload = job.payload
    messages = payload.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadPayload("messages is not a list of at least one")
    request = GenerationRequest(
        messages=tuple(_message(place, value) for place, value in enumerate(messages)),
        max_tokens=_whole("max_tokens", payload.get("max_tokens", DEFAULT_MAX_TOKENS)),
        stop=_strings("stop", payload.get("stop", [])),
        sampling=_sampling(payload.get("sampling") or {}),
        schema=_schema(payload.get("schema")),
    )
    if request.messages[-1].role != "user":
        raise BadPayload("the last message is not the user's")
    return GenerationPlan(request, _grounding(payload.get("grounding")))


def _message(place: int, value: Any) -> Message:
    if not isinstance(value, Mapping) or value.get("role") not in _ROLES:
        raise BadPayload(f"messages[{place}] has no role of {', '.join(_ROLES)}")
    content = value.get("content")
    if not isinstance(content, str) or not content.strip():
        raise BadPayload(f"messages[{place}] has no content")
    return Message(value["role"], content)


def _sampling(value: Any) -> Sampling:
    if not isinstance(value, Mapping) or (unknown := set(value) - set(_SAMPLING)):
        raise BadPayload("sampling has a parameter that is not known")
    del unknown
    taken: dict[str, Any] = {}
    for name, kind in _SAMPLING.items():
        number = value.get(name)
        if number is None:
            continue
        if isinstance(number, bool) or not isinstance(number, (int, kind)):
            raise BadPayload(f"sampling.{name} is not a number")
        taken[name] = number
    return Sampling(**taken)


def _schema(value: Any) -> Mapping[str, Any] | None:
    if value is None:
        return None
    fault = schema_fault(value)
    if fault is not None:
        raise BadPayload(f"schema {fault}")
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


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BadPayload(f"{name} is not a whole number from 1")
    return value


def _strings(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise BadPayload(f"{name} is not a list of strings")
    return tuple(value)
