"""What a generation job gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Citation:
    """A passage that an answer rests on.

    Attributes:
        passage: its number in the order in which the model was shown the passages, from 1.
        marked: the answer names it; otherwise it named none, and was shown this one.
        owner: whose document it is from.
        source: that document's collection.
        document: the document's id, as it was indexed.
        date: as it was indexed.
        score: cosine similarity of passage and query.
        text: the passage.
    """

    passage: int
    marked: bool
    owner: str
    source: str
    document: str
    date: str | None
    score: float
    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """What was written.

    Attributes:
        text: the answer; with a schema, the JSON as the model wrote it.
        value: that JSON, read and valid by the schema; None without one.
        finish_reason: `stop`, `length` where `max_tokens` cut it, `refusal` where the model declined.
        input_tokens: read, over all calls that it took; None where the backend does not tell.
        output_tokens: written.
        citations: passages that a grounded answer rests on.
    """

    text: str = field(repr=False)
    value: Any = field(repr=False)
    finish_reason: str
    input_tokens: int | None
    output_tokens: int | None
    citations: tuple[Citation, ...] = ()

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> GenerationResult:
        """From the worker's `{"text", "finish_reason", "usage", "citations", "json"?}`."""
        usage = body.get("usage") or {}
        return cls(
            text=str(body["text"]),
            value=body.get("json"),
            finish_reason=str(body["finish_reason"]),
            input_tokens=usage.get("input_tokens"),
            output_tokens=usage.get("output_tokens"),
            citations=tuple(Citation(**row) for row in body.get("citations", ())),
        )
