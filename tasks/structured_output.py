"""JSON that a model wrote, held against a schema. Nothing is fetched: remote references fail."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, best_match
from referencing import Registry
from referencing.exceptions import Unresolvable

_FENCE = re.compile(r"\A\s*```(?:json)?\s*\n(?P<inner>.*)\n\s*```\s*\Z", re.DOTALL)


class InvalidJson(Exception):
    """The answer does not fit. Its message is for the model that wrote it, and may hold parts of it."""


def schema_fault(schema: object) -> str | None:
    """What is wrong with a schema itself, without content; None where nothing is."""
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

    A fence of Markdown around it is taken off.

    Raises:
        JsonFault: it is no JSON, or does not fit.
    """
    fenced = _FENCE.match(text)
    try:
        value = json.loads(fenced["inner"] if fenced else text, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise InvalidJson(f"it is not JSON ({error.msg} at character {error.pos})") from None
    except ValueError:  # of an integer with thousands of digits
        raise InvalidJson("it holds a number that is too long") from None
    except RecursionError:
        raise InvalidJson("it is nested too deeply") from None
    validator = Draft202012Validator(dict(schema), registry=Registry())
    try:
        fault = best_match(validator.iter_errors(value))
    except (Unresolvable, RecursionError):
        raise InvalidJson("the schema refers to what is not in it") from None
    if fault is not None:
        place = "/".join(map(str, fault.absolute_path)) or "the whole"
        raise InvalidJson(f"{place}: {fault.message[:200]}")
    return value
