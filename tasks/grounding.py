"""Answers from passages: what is put before the model, and which passages its answer rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from inference.protocol import GenerationRequest, Message

INSTRUCTION: Final = (
    "Answer from the numbered passages alone. Where they do not hold the answer, say so. Name the "
    "passages that your answer rests on."
)
CHARACTERS_PER_TOKEN: Final = 3
"""A cautious guess for any language and tokenizer: passages are left out rather than cut."""


@dataclass(frozen=True, slots=True)
class Grounding:
    """What to search before answering.

    Attributes:
        query: what to search for.
        sources: shareable sources, of any owner.
        own_sources: only these of the owner's own; None for all of them, empty for none.
        limit: passages at most.
    """

    query: str = field(repr=False)
    sources: tuple[str, ...]
    own_sources: tuple[str, ...] | None
    limit: int


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document, as a search found it."""

    owner: str
    source: str
    document: str
    date: str | None
    score: float
    text: str = field(repr=False)


def grounded(
    request: GenerationRequest, passages: Sequence[Passage], context: int | None
) -> tuple[GenerationRequest, Sequence[Passage]]:
    """The request with its passages put before the question, and those that it has room for.

    Without a schema of its own it gets one, by which the model names the passages it used: a small
    model forgets brackets in its text, and fills in a list.

    Args:
        request: the question.
        passages: the best first; at least one.
        context: tokens that the model reads and writes in all, if known.
    """
    used = _that_fit(request, passages, context)
    numbered = "\n\n".join(f"[{n}] {_titled(passage)}" for n, passage in enumerate(used, 1))
    *before, question = request.messages
    asked = replace(question, content=f"Passages:\n\n{numbered}\n\nQuestion: {question.content}")
    schema = request.schema
    if schema is None:
        schema = {
            "type": "object",
            "properties": {
                "answer": {"type": "string"},
                "passages": {
                    "type": "array",
                    "items": {"enum": list(range(1, len(used) + 1))},
                    "minItems": 1,
                    "maxItems": len(used),
                },
            },
            "required": ["answer", "passages"],
            "additionalProperties": False,
        }
    messages = (Message("system", INSTRUCTION), *before, asked)
    return replace(request, messages=messages, schema=schema), used


def cited(value: Mapping[str, Any], used: Sequence[Passage]) -> tuple[str, list[dict[str, Any]]]:
    """The answer's text and the passages it names, of a value that fits the schema of `grounded`."""
    numbers = sorted(set(value["passages"]))
    return str(value["answer"]), [citation(number, used[number - 1]) for number in numbers]


def citation(number: int, passage: Passage) -> dict[str, Any]:
    """A passage as a result shows it."""
    return {"passage": number, **asdict(passage)}


def _titled(passage: Passage) -> str:
    title = passage.date or passage.document
    return f"({title}) {passage.text}" if title else passage.text


def _that_fit(
    request: GenerationRequest, passages: Sequence[Passage], context: int | None
) -> Sequence[Passage]:
    if context is None:
        return passages
    taken = sum(len(message.content) for message in request.messages) + len(INSTRUCTION)
    room = (context - request.max_tokens) * CHARACTERS_PER_TOKEN - taken
    used: list[Passage] = []
    for passage in passages:
        room -= len(_titled(passage)) + CHARACTERS_PER_TOKEN * 4
        if room < 0 and used:
            break
        used.append(passage)
    return used
