"""Maps a server's error response to `InferenceError`, by status, error codes and Retry-After.

A server's message may quote the prompt, so it is neither kept nor read.
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
        "input_tokens",  # vLLM names the parameter
        "request_too_large",  # Anthropic
    }
)
MAX_RETRY_AFTER_S: Final = 86_400.0
"""A day: longer waits are cut to it."""

_REFUSED: Final = frozenset(
    {"content_policy_violation", "content_filter", "invalid_prompt", "policy_violation"}
)
_MISSING: Final = frozenset({"model_not_found", "not_found_error", "not_supported_error"})
_TEMPORARY: Final = frozenset({"overloaded_error", "server_error", "api_error", "timeout_error"})
_LIMITED: Final = frozenset({"rate_limit_error", "rate_limit_exceeded", "insufficient_quota"})


def error_codes(body: object) -> frozenset[str]:
    """The codes in an error's body: `code`, `type` and `param`, at the top, in `error` or `detail`.

    FastAPI puts an application's errors into `detail`.
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
    """The status in the code of an error inside a stream, whose own status was 200."""
    if not isinstance(body, Mapping):
        return None
    code = body.get("code")
    return code if isinstance(code, int) else code_of(body.get("error"))


def error_for_status(  # noqa: PLR0911 - one return for each error
    status: int | None,
    codes: Collection[str],
    headers: Mapping[str, Any],
    model: ModelEntry,
) -> InferenceError:
    """The error for an error response.

    Args:
        status: of the response; None if unknown.
        codes: its codes, from `error_codes`.
        headers: of the response, by lower-case name.
        model: that was called.
    """
    codes = set(codes)
    wait = retry_after(headers)
    if status == HTTPStatus.TOO_MANY_REQUESTS or codes & _LIMITED:
        return RateLimited(retry_after=wait)
    if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE or codes & TOO_LONG:
        return TooLong()
    if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        return Unauthorised(
            f"backend {model.backend} does not accept the key, or forbids the model; "
            f"VESTRY_BACKEND_KEYS={model.backend}=FILE names the key's file"
        )
    if codes & _REFUSED:
        return Refused("the provider's rules do not allow this request")
    if status in {HTTPStatus.NOT_FOUND, HTTPStatus.NOT_IMPLEMENTED} or codes & _MISSING:
        return model_missing(model)
    if status is not None and HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
        return BackendUnavailable(
            f"backend {model.backend} redirects to another address, which is not followed; "
            "set its base URL to that address"
        )
    retry = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT, HTTPStatus.TOO_EARLY}
    temporary = status is None or status in retry or status >= HTTPStatus.INTERNAL_SERVER_ERROR
    if temporary or codes & _TEMPORARY:
        return BackendUnavailable(retry_after=wait)
    return BadRequest()


def unreachable(status: int | None = None, *, malformed: bool = False) -> BackendProbe:
    """The probe result of a server that cannot be used.

    Args:
        status: of its response; None if there was none, or no valid one.
        malformed: whether its response was malformed.
    """
    detail = "its response is malformed" if malformed else "does not answer"
    return BackendProbe(False, None, detail if status is None else f"answers with status {status}")


def model_missing(model: ModelEntry) -> ModelMissing:
    """The error for a model that its server does not have."""
    hint = f"; to get it: {model.get}" if model.get else ""
    return ModelMissing(
        f"backend {model.backend} does not serve {model.served_name} in this way{hint}"
    )


def retry_after(headers: Mapping[str, str], clock: Callable[[], float] = time.time) -> float | None:
    """Seconds to wait, from a server's response headers; None if they hold no valid wait.

    Args:
        headers: of the response, by lower-case name.
        clock: seconds since 1970, for a date without the server's own `Date`.

    Returns:
        0 to `MAX_RETRY_AFTER_S`. A date in the past is 0.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return _bounded(milliseconds / 1000)
    value = headers.get("retry-after")
    seconds = _number(value)
    if seconds is not None:
        return _bounded(seconds)
    until = _date(value)
    if until is None:
        return None
    # Both by the server's clock, if its response has a date: this machine's may be wrong.
    now = _date(headers.get("date"))
    return _bounded(until - (clock() if now is None else now))


def _bounded(seconds: float) -> float:
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_S)


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
