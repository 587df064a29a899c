"""What a server's refusal means, whichever SDK brought it: status and error codes, never its text.

A server's message may quote the prompt, so nothing of it is kept, nor looked at.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, Final

from inference.catalogue.schema import ModelEntry
from inference.errors import (
    BackendUnavailable,
    BadRequest,
    InferenceError,
    ModelMissing,
    RateLimited,
    Refused,
    TooLong,
    Unauthorised,
)
from inference.protocol import BackendProbe

TOO_LONG: Final = frozenset(
    {
        "context_length_exceeded",  # OpenAI, LM Studio
        "string_above_max_length",  # OpenAI
        "exceed_context_size_error",  # llama.cpp
        "input_tokens",  # vLLM names the parameter at fault
        "request_too_large",  # Anthropic
    }
)
_REFUSED: Final = frozenset(
    {"content_policy_violation", "content_filter", "invalid_prompt", "policy_violation"}
)
_MISSING: Final = frozenset({"model_not_found", "not_found_error", "not_supported_error"})
_LATER: Final = frozenset({"overloaded_error", "server_error", "api_error", "timeout_error"})
_LIMITED: Final = frozenset({"rate_limit_error", "rate_limit_exceeded", "insufficient_quota"})


def error_codes(body: object) -> frozenset[str]:
    """The codes in an error's body: `code`, `type` and `param`, at the top, in `error` or `detail`.

    FastAPI puts what an application raises into `detail`.
    """
    return frozenset(_error_codes(body))


def _error_codes(body: object) -> Iterator[str]:
    if not isinstance(body, Mapping):
        return
    for name in ("code", "type", "param"):
        if isinstance(body.get(name), str):
            yield body[name]
    yield from _error_codes(body.get("error"))
    yield from _error_codes(body.get("detail"))


def code_of(body: object) -> int | None:
    """The status that an error inside a stream, whose own status was 200, gives as its code."""
    if not isinstance(body, Mapping):
        return None
    code = body.get("code")
    return code if isinstance(code, int) else code_of(body.get("error"))


def error_for_status(  # noqa: PLR0911 - one return a meaning
    status: int | None,
    told: Collection[str],
    headers: Mapping[str, Any],
    model: ModelEntry,
) -> InferenceError:
    """The error for an answer that is one.

    Args:
        status: of the response; None where it does not say.
        told: its codes, from `words`.
        headers: of the response, by lower-case name.
        model: that was asked for.
    """
    given = set(told)
    wait = retry_after(headers)
    if status == HTTPStatus.TOO_MANY_REQUESTS or given & _LIMITED:
        return RateLimited(retry_after=wait)
    if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE or given & TOO_LONG:
        return TooLong()
    if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        return Unauthorised(
            f"backend {model.backend} does not accept the key, or forbids the model; "
            f"VESTRY_BACKEND_KEYS={model.backend}=FILE names the key's file"
        )
    if given & _REFUSED:
        return Refused("the provider's rules do not allow this request")
    if status in {HTTPStatus.NOT_FOUND, HTTPStatus.NOT_IMPLEMENTED} or given & _MISSING:
        return model_missing(model)
    if status is not None and HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
        return BackendUnavailable(
            f"backend {model.backend} sends its callers to another address, which is not followed; "
            "its base URL must be the final one"
        )
    temporary = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT, HTTPStatus.TOO_EARLY}
    later = status is None or status in temporary or status >= HTTPStatus.INTERNAL_SERVER_ERROR
    if later or given & _LATER:
        return BackendUnavailable(retry_after=wait)
    return BadRequest()


def unreachable(status: int | None = None, *, sense: bool = True) -> BackendProbe:
    """What `probe` tells of a server that cannot be used.

    Args:
        status: that it answered; None where it did not.
        sense: False where its answer made none.
    """
    detail = "does not answer" if sense else "answers what makes no sense"
    return BackendProbe(False, None, detail if status is None else f"answers with status {status}")


def model_missing(model: ModelEntry) -> ModelMissing:
    """The error for a model that its server does not have."""
    hint = f"; to get it: {model.get}" if model.get else ""
    return ModelMissing(
        f"backend {model.backend} does not serve {model.served_name} in this way{hint}"
    )


# How long a server asked us to wait, from its response headers.

LONGEST_S = 86_400.0
"""A day: a server that asks for more is asked again after it."""


def retry_after(headers: Mapping[str, str], clock: Callable[[], float] = time.time) -> float | None:
    """Seconds to wait, as a server said in one of its ways; None where it said nothing usable.

    Args:
        headers: of the response, by lower-case name.
        clock: seconds since 1970, for a date without a `Date` of the server's own beside it.

    Returns:
        0 to `LONGEST_S`. A date in the past is 0.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return _bounded(milliseconds / 1000)
    told = headers.get("retry-after")
    seconds = _number(told)
    if seconds is not None:
        return _bounded(seconds)
    until = _date(told)
    if until is None:
        return None
    # Both by the server's clock, where it tells it: ours may be wrong.
    now = _date(headers.get("date"))
    return _bounded(until - (clock() if now is None else now))


def _bounded(seconds: float) -> float:
    return min(max(seconds, 0.0), LONGEST_S)


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _date(text: str | None) -> float | None:
    if not text:
        return None
    try:
        return parsedate_to_datetime(text).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None
