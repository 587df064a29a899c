"""Validation of arguments. Every fault is an `InvalidInput` that names the field, without content."""

from __future__ import annotations

import json
import math
import re
from numbers import Real
from typing import Final

from vestry.errors import InvalidInput, PayloadTooLarge

PAYLOAD_LIMIT: Final = 1024 * 1024
"""Most bytes of a job's serialised payload; the caller splits larger inputs over jobs."""
_SOURCE = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_LABEL_MAX: Final = 200


def check_text(name: str, text: object) -> None:
    """Check a text for a model: str, not blank, storable, within the payload limit.

    Raises:
        InvalidInput: names the field.
    """
    if not isinstance(text, str):
        raise InvalidInput(name, "must be text (str)")
    if not text.strip():
        raise InvalidInput(name, "must not be empty")
    _check_storable(name, text)
    if len(text) > PAYLOAD_LIMIT:
        raise PayloadTooLarge(name, len(text.encode()), PAYLOAD_LIMIT)


def check_label(name: str, value: object) -> None:
    """Check a short name: 1 to 200 characters, storable.

    Raises:
        InvalidInput: names the field.
    """
    if not isinstance(value, str):
        raise InvalidInput(name, "must be text (str)")
    if not 1 <= len(value) <= _LABEL_MAX or not value.strip():
        raise InvalidInput(name, f"must be 1 to {_LABEL_MAX} characters")
    _check_storable(name, value)


def check_integer(name: str, value: object, most: int, noun: str = "a whole number") -> None:
    """Check a count: an int from 1 to `most`; a bool is none.

    Raises:
        InvalidInput: names the field.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise InvalidInput(name, f"must be {noun}, 1 to {most}")


def check_timeout(value: object) -> None:
    """Check a timeout: a number of seconds.

    Raises:
        InvalidInput: it is none; NaN would never end.
    """
    if not isinstance(value, Real) or isinstance(value, bool) or math.isnan(value):
        raise InvalidInput("timeout", "must be a number of seconds")


def check_source(source: object) -> None:
    """Check the name of a source.

    Raises:
        InvalidInput: it is missing or malformed.
    """
    if not isinstance(source, str) or not _SOURCE.fullmatch(source):
        raise InvalidInput(
            "source", "must be 1 to 64 of a-z, 0-9, '.', '_', '-', and start with a-z or 0-9"
        )


def dump_json(name: str, body: object) -> bytes:
    """Compact JSON in UTF-8.

    Raises:
        InvalidInput: a value cannot be written as JSON, or not as UTF-8.
    """
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError):
        # `from None`: the encoder's message may quote the value.
        raise InvalidInput(name, "must contain only JSON values in valid Unicode") from None


def _check_storable(name: str, text: str) -> None:
    if "\x00" in text:
        raise InvalidInput(name, "must not contain a NUL character")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidInput(
                name, "is not valid Unicode (a lone surrogate); decode it with its right encoding"
            ) from None
