"""What a server's refusal means, whichever SDK brought it: status and error codes, never its text.

A server's message may quote the prompt, so nothing of it is kept, nor looked at.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from http import HTTPStatus
from typing import Any, Final

from inference.catalogue import ModelEntry
from inference.errors import (
    BadRequest,
    InferenceError,
    ModelMissing,
    RateLimited,
    Refused,
    TooLong,
    Unauthorised,
    Unavailable,
)
from inference.protocol import Probe
from inference.retry_after import retry_after

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


def words(body: object) -> frozenset[str]:
    """The codes in an error's body: `code`, `type` and `param`, at the top, in `error` or `detail`.

    FastAPI puts what an application raises into `detail`.
    """
    return frozenset(_words(body))


def _words(body: object) -> Iterator[str]:
    if not isinstance(body, Mapping):
        return
    for name in ("code", "type", "param"):
        if isinstance(body.get(name), str):
            yield body[name]
    yield from _words(body.get("error"))
    yield from _words(body.get("detail"))


def code_of(body: object) -> int | None:
    """The status that an error inside a stream, whose own status was 200, gives as its code."""
    if not isinstance(body, Mapping):
        return None
    code = body.get("code")
    return code if isinstance(code, int) else code_of(body.get("error"))


def refusal(  # noqa: PLR0911 - one return a meaning
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
        return missing(model)
    if status is not None and HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
        return Unavailable(
            f"backend {model.backend} sends its callers to another address, which is not followed; "
            "its base URL must be the final one"
        )
    temporary = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT, HTTPStatus.TOO_EARLY}
    later = status is None or status in temporary or status >= HTTPStatus.INTERNAL_SERVER_ERROR
    if later or given & _LATER:
        return Unavailable(retry_after=wait)
    return BadRequest()


def away(status: int | None = None, *, sense: bool = True) -> Probe:
    """What `probe` tells of a server that cannot be used.

    Args:
        status: that it answered; None where it did not.
        sense: False where its answer made none.
    """
    detail = "does not answer" if sense else "answers what makes no sense"
    return Probe(False, None, detail if status is None else f"answers with status {status}")


def missing(model: ModelEntry) -> ModelMissing:
    """The error for a model that its server does not have."""
    hint = f"; to get it: {model.get}" if model.get else ""
    return ModelMissing(
        f"backend {model.backend} does not serve {model.served_name} in this way{hint}"
    )
