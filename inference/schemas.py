"""What can be told of a caller's JSON schema before a provider sees it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

_BEYOND: Final = frozenset(
    {
        "allOf", "not", "if", "then", "else",
        "dependentRequired", "dependentSchemas", "patternProperties",
    }
)  # fmt: skip
"""Keywords that OpenAI's strict mode does not take."""


def closed(schema: Mapping[str, Any]) -> bool:
    """Whether OpenAI's strict mode takes it: each object names all of its properties as required.

    A schema that is not closed is asked for without being enforced.
    """
    return all(_closed(part) for part in _parts(schema))


def _closed(part: Mapping[str, Any]) -> bool:
    if _BEYOND & part.keys():
        return False
    if part.get("type") != "object" and "properties" not in part:
        return True
    named = set(part.get("properties") or ())
    return part.get("additionalProperties") is False and set(part.get("required") or ()) == named


def _parts(schema: Any) -> Iterator[Mapping[str, Any]]:
    """The schema and every schema within it."""
    waiting = [schema]
    while waiting:
        part = waiting.pop()
        if isinstance(part, Mapping):
            yield part
            for name in ("properties", "$defs", "definitions"):
                waiting += (part.get(name) or {}).values()
            for name in ("anyOf", "oneOf", "prefixItems"):
                waiting += part.get(name) or ()
            waiting.append(part.get("items"))
