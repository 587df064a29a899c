"""Responses of remote servers: retry delay, error codes, schemas, token estimates."""

from __future__ import annotations

from email.utils import formatdate

import pytest

from inference.backends.openai_http import strict_mode_accepts
from inference.remote.embedding import estimate_tokens
from inference.remote.response_errors import MAX_RETRY_AFTER_S, code_of, error_codes, retry_after

NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "1e9"}, MAX_RETRY_AFTER_S),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": formatdate(NOW + 30, usegmt=True)}, 30.0),
        ({"retry-after": formatdate(NOW - 30, usegmt=True)}, 0.0),
        # The server's clock is an hour ahead; the wait is a minute.
        ({"retry-after": formatdate(NOW + 3660, usegmt=True),
          "date": formatdate(NOW + 3600, usegmt=True)}, 60.0),
        ({"retry-after": "Mon, 99 Nov 2026 99:99:99 GMT"}, None),
    ],
)  # fmt: skip
def test_retry_after_is_read_from_headers(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, lambda: NOW) == seconds


def test_error_codes_are_found_at_every_level() -> None:
    assert error_codes(
        {"error": {"code": "a", "type": "b", "param": "c", "message": "not me"}}
    ) == set("abc")
    assert error_codes({"detail": {"code": "a"}}) == {"a"}
    assert error_codes({"type": "error", "error": {"type": "b"}}) == {"error", "b"}
    for body in (None, [], "text", {"error": "text"}, {"code": 400}, {"error": [1]}):
        assert error_codes(body) == set()
    assert code_of({"error": {"code": 503}}) == 503
    assert code_of({"code": 429}) == 429
    assert code_of({"error": {"code": "x"}}) is None
    assert code_of("text") is None


@pytest.mark.parametrize(
    ("schema", "strict"),
    [
        ({"type": "string"}, True),
        ({"type": "object", "properties": {}, "additionalProperties": False}, True),
        ({"type": "object", "properties": {"a": {}}, "required": ["a"]}, False),
        ({"type": "object", "properties": {"a": {}}, "additionalProperties": False}, False),
        ({"properties": {"a": {}}}, False),
        ({"type": "array", "items": {"type": "object"}}, False),
        ({"anyOf": [{"type": "string"}, {"type": "object"}]}, False),
        ({"$defs": {"a": {"type": "object"}}, "type": "string"}, False),
        ({"allOf": [{"type": "string"}]}, False),
    ],
)
def test_strict_mode_accepts_closed_schemas_only(schema: dict[str, object], strict: bool) -> None:
    assert strict_mode_accepts(schema) is strict


def test_token_estimate_is_not_too_low() -> None:
    """Real counts by MiniLM's tokenizer, without its two special tokens."""
    for text, real in (
        ("Up betimes, and to the office.", 8),
        ("In the beginning God created the heaven and the earth.", 11),
        ("Ge1:1 In the beginning", 7),
        ("1660-01-18", 5),
        ("你好世界", 4),
        ("", 0),
        ("   \n ", 0),
    ):
        assert real <= estimate_tokens(text) <= 2 * real + 2, text
