"""Grounded answers: passages put before the question, and citations read from the answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from inference.protocol import GenerationRequest
from vestry.jobs.generation import Message

INSTRUCTION: Final = (
    "Answer from the numbered passages alone, in a few sentences. Put the number of the passage that a "
    "sentence rests on behind it, such as [2]. Where the passages do not hold the answer, say so."
)
_MARK = re.compile(r"\[\s*(\d{1,3}(?:\s*[,;]\s*\d{1,3})*)\s*\]")
CHARACTERS_PER_TOKEN: Final = 3
"""A low estimate for any language and tokenizer: passages are left out rather than cut."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document, as a search returned it."""

    owner: str
    source: str
    document: str
    date: str | None
    score: float
    text: str = field(repr=False)


def grounded(
    request: GenerationRequest, passages: Sequence[Passage], context: int | None
) -> tuple[GenerationRequest, Sequence[Passage]]:
    """Put passages before the question, as many as fit.

    Args:
        request: the question.
        passages: the best first; at least one.
        context: tokens that the model reads and writes in all, if known.

    Returns:
        The request, and the passages in it.
    """
    used = _fitting(request, passages, context)
    numbered = "\n\n".join(f"[{n}] {_titled(passage)}" for n, passage in enumerate(used, 1))
    *before, question = request.messages
    prompt = Message(question.role, f"Passages:\n\n{numbered}\n\nQuestion: {question.content}")
    return replace(request, messages=(Message("system", INSTRUCTION), *before, prompt)), used


def citations(text: str, used: Sequence[Passage]) -> list[dict[str, Any]]:
    """The passages that an answer cites by number, as a result shows them.

    An answer without a number, common with small models, cites all of them, with `marked` false.
    """
    numbers = {int(n) for marks in _MARK.findall(text) for n in re.findall(r"\d+", marks)}
    marked = sorted(numbers & set(range(1, len(used) + 1)))
    return [
        {"passage": number, "marked": bool(marked), **asdict(used[number - 1])}
        for number in marked or range(1, len(used) + 1)
    ]


def _titled(passage: Passage) -> str:
    title = passage.date or passage.document
    return f"({title}) {passage.text}" if title else passage.text


def _fitting(
    request: GenerationRequest, passages: Sequence[Passage], context: int | None
) -> Sequence[Passage]:
    if context is None:
        return passages
    prompt = sum(len(message.content) for message in request.messages) + len(INSTRUCTION)
    remaining = (context - request.max_tokens) * CHARACTERS_PER_TOKEN - prompt
    used: list[Passage] = []
    for passage in passages:
        remaining -= len(_titled(passage)) + CHARACTERS_PER_TOKEN * 4
        if remaining < 0 and used:
            break
        used.append(passage)
    return used
