"""An answer that arrives piece by piece: watched while it does, and judged when it has ended."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Final, TypeVar

from inference.errors import BackendUnavailable, BadAnswer, CallCancelled
from inference.protocol import Cancelled, FinishReason, Generated, GenerationRequest

T = TypeVar("T")

MALFORMED: Final = (ValueError, TypeError, AttributeError, LookupError)
"""What taking an answer apart raises that is not what it should be. Broken JSON is a ValueError."""


def stream_until(pieces: Iterable[T], cancelled: Cancelled, timeout_s: float) -> Iterator[T]:
    """The pieces, for as long as somebody wants them and the time is not over.

    Args:
        pieces: as they arrive; the caller closes what they come from.
        cancelled: asked after each.
        timeout_s: for all of them, in seconds. Silence is the HTTP client's to end.

    Raises:
        Abandoned: nobody wants them any more.
        Unavailable: the time is over.
    """
    until = time.monotonic() + timeout_s
    for piece in pieces:
        raise_if_cancelled(cancelled)
        if time.monotonic() > until:
            raise BackendUnavailable(f"the answer was not complete after {timeout_s:.0f} s")
        yield piece


def raise_if_cancelled(cancelled: Cancelled) -> None:
    """Go on only if somebody wants the answer.

    Raises:
        Abandoned: nobody does.
    """
    if cancelled():
        raise CallCancelled


def finish_response(
    request: GenerationRequest,
    text: str,
    reason: FinishReason | None,
    input_tokens: int | None,
    output_tokens: int | None,
) -> Generated:
    """An answer that has ended.

    Args:
        request: what was asked for.
        text: all of it.
        reason: why it ended; None where the server never said so.
        input_tokens: of the prompt, where the server told.
        output_tokens: of the answer, where the server told.

    Raises:
        BadAnswer: it broke off, or there is nothing in it.
    """
    if reason is None:
        raise BadAnswer("the answer broke off before its end")
    # A refusal may be wordless, and where a stop string comes first nothing is the right answer.
    if not text and reason != "refusal" and not (request.stop and reason == "stop"):
        raise BadAnswer("the answer is empty")
    return Generated(text, reason, input_tokens, output_tokens)
