"""JSON from a language model: asked for, validated against a schema, repaired once.

Nothing is fetched: a schema's remote references fail.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Generic, TypeVar

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, best_match
from referencing import Registry
from referencing.exceptions import Unresolvable

from inference.protocol import Cancelled, Generated, GenerationModel, GenerationRequest
from vestry.jobs.generation import Message

T = TypeVar("T")

MAX_REPAIR_ATTEMPTS: Final = 1
"""Times that an answer that does not fit is sent back to the model with the reason."""

_FENCE = re.compile(r"\A\s*```(?:json)?\s*\n(?P<inner>.*)\n\s*```\s*\Z", re.DOTALL)


class InvalidJson(Exception):
    """The answer does not fit. Its message is for the model that wrote it, and may quote the answer."""


@dataclass(frozen=True, slots=True)
class StructuredOutput(Generic[T]):
    """The last answer of a model, and the tokens of all its calls.

    Attributes:
        generated: the answer.
        value: the JSON in it; None if it was refused or does not fit.
        fits: whether it fits the schema.
    """

    generated: Generated
    input_tokens: int | None
    output_tokens: int | None
    value: T | None = field(default=None, repr=False)
    fits: bool = False


def generate_json(
    model: GenerationModel,
    request: GenerationRequest,
    cancelled: Cancelled,
    *,
    schema: Mapping[str, Any],
    objection: str,
    repair_cut: bool,
    convert: Callable[[Any], T],
) -> StructuredOutput[T]:
    """Ask a model for JSON; ask again, with the reason, if the answer does not fit.

    A refusal is returned at once.

    Args:
        model: writes the answer.
        request: asks for JSON of the schema.
        cancelled: as in `GenerationModel.generate`.
        schema: the answer must fit it.
        objection: first words of the message that sends an answer back.
        repair_cut: whether an answer that was cut at `max_tokens` is sent back too.
        convert: makes the result of a valid answer, or raises `InvalidJson`.

    Raises:
        InferenceError: raised by the model.
    """
    calls: list[Generated] = []
    messages = tuple(request.messages)
    while True:
        generated = model.generate(replace(request, messages=messages), cancelled)
        calls.append(generated)
        tokens = total_tokens(calls)
        if generated.finish_reason == "refusal":
            return StructuredOutput(generated, *tokens)
        try:
            value = convert(parse_json_answer(generated.text, schema))
        except InvalidJson as error:
            was_cut = generated.finish_reason == "length" and not repair_cut
            if was_cut or len(calls) > MAX_REPAIR_ATTEMPTS:
                return StructuredOutput(generated, *tokens)
            answer = Message("assistant", generated.text.strip() or "(nothing)")
            reply = f"{objection}: {error}. Answer again, with JSON alone."
            messages = (*messages, answer, Message("user", reply))
            continue
        return StructuredOutput(generated, *tokens, value, fits=True)


def total_tokens(calls: Sequence[Generated]) -> tuple[int | None, int | None]:
    """Tokens in and out of several calls; None if no call reported any."""
    return (
        _total([call.input_tokens for call in calls]),
        _total([call.output_tokens for call in calls]),
    )


def _total(counts: Sequence[int | None]) -> int | None:
    reported = [count for count in counts if count is not None]
    return sum(reported) if reported else None


def schema_error(schema: object) -> str | None:
    """Why a schema itself is invalid, without content; None if it is valid."""
    if not isinstance(schema, Mapping):
        return "is not a JSON object"
    try:
        Draft202012Validator.check_schema(dict(schema))
    except (SchemaError, RecursionError):
        return "is not a JSON schema (draft 2020-12)"
    return None


def _no_constant(name: str) -> Any:
    raise InvalidJson(f"{name} is not JSON")


def parse_json_answer(text: str, schema: Mapping[str, Any]) -> Any:
    """The JSON value in an answer, valid by its schema.

    A Markdown fence around it is removed.

    Raises:
        InvalidJson: it is not JSON, or does not fit.
    """
    fenced = _FENCE.match(text)
    try:
        value = json.loads(fenced["inner"] if fenced else text, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise InvalidJson(f"it is not JSON ({error.msg} at character {error.pos})") from None
    except ValueError:  # an integer with thousands of digits
        raise InvalidJson("it holds a number that is too long") from None
    except RecursionError:
        raise InvalidJson("it is nested too deeply") from None
    validator = Draft202012Validator(dict(schema), registry=Registry())
    try:
        violation = best_match(validator.iter_errors(value))
    except (Unresolvable, RecursionError):
        raise InvalidJson("the schema refers to what is not in it") from None
    if violation is not None:
        path = "/".join(map(str, violation.absolute_path)) or "the whole"
        raise InvalidJson(f"{path}: {violation.message[:200]}")
    return value
