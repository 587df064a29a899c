"""Streamed answers: cancellation and timeout while they arrive, validation at their end."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Final, TypeVar

from inference.errors import BackendUnavailable, BadAnswer, CallCancelled
from inference.protocol import Cancelled, FinishReason, Generated, GenerationRequest

T = TypeVar("T")

MALFORMED: Final = (ValueError, TypeError, AttributeError, LookupError)
"""Errors of reading a malformed answer. Broken JSON is a ValueError."""


def stream_until(pieces: Iterable[T], cancelled: Cancelled, timeout_s: float) -> Iterator[T]:
    """The pieces of a stream, until it ends, is cancelled or times out.

    Args:
        pieces: as they arrive; the caller closes their source.
        cancelled: polled after each piece.
        timeout_s: for all of them, in seconds. The HTTP client's timeout ends an idle stream.

    Raises:
        CallCancelled: `cancelled` returned True.
        BackendUnavailable: the timeout has passed.
    """
    until = time.monotonic() + timeout_s
    for piece in pieces:
        raise_if_cancelled(cancelled)
        if time.monotonic() > until:
            raise BackendUnavailable(f"the answer was not complete after {timeout_s:.0f} s")
        yield piece


def raise_if_cancelled(cancelled: Cancelled) -> None:
    """Cancellation check.

    Raises:
        CallCancelled: `cancelled` returned True.
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
    """Validate an answer whose stream has ended.

    Args:
        request: the call's request.
        text: the whole answer.
        reason: why it ended; None if the server sent none.
        input_tokens: of the prompt, if reported.
        output_tokens: of the answer, if reported.

    Raises:
        BadAnswer: the stream broke off, or the answer is empty.
    """
    if reason is None:
        raise BadAnswer("the answer broke off before its end")
    # A refusal may be empty, and so is an answer that begins with a stop string.
    if not text and reason != "refusal" and not (request.stop and reason == "stop"):
        raise BadAnswer("the answer is empty")
    return Generated(text, reason, input_tokens, output_tokens)
