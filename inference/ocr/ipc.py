"""What parent and child say to each other: JSON objects, each after its length in four bytes.

JSON and not pickle: a child that a hostile file has taken over can lie, and do nothing else.
"""

from __future__ import annotations

import json
import os
import select
import struct
import time
from typing import Any, Final

LARGEST: Final = 64 * 1024 * 1024
"""Bytes of a frame; a page with a million characters and their boxes has fewer."""
_LENGTH: Final = struct.Struct(">I")


class ConnectionClosed(Exception):
    """The other side is gone, or does not speak this language."""


class ReplyTimeout(Exception):
    """The other side did not answer in time."""


def send(descriptor: int, message: dict[str, Any]) -> None:
    """Write one frame.

    Raises:
        Closed: nobody reads any more.
    """
    body = json.dumps(message, separators=(",", ":")).encode()
    left = memoryview(_LENGTH.pack(len(body)) + body)
    try:
        while left:
            left = left[os.write(descriptor, left) :]
    except OSError:
        raise ConnectionClosed from None


def receive(descriptor: int, seconds: float | None = None) -> dict[str, Any]:
    """Read one frame.

    Args:
        descriptor: a pipe's.
        seconds: how long to wait for all of it; None for ever.

    Raises:
        Closed: the pipe ended, or what came is no frame.
        Late: the time is over.
    """
    until = None if seconds is None else time.monotonic() + seconds
    (size,) = _LENGTH.unpack(_read(descriptor, _LENGTH.size, until))
    if size > LARGEST:
        raise ConnectionClosed
    try:
        message = json.loads(_read(descriptor, size, until))
    except (ValueError, RecursionError):
        raise ConnectionClosed from None
    if not isinstance(message, dict):
        raise ConnectionClosed
    return message


def _read(descriptor: int, size: int, until: float | None) -> bytes:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    parts = bytearray()
    while len(parts) < size:
        if until is not None:
            left = until - time.monotonic()
            if left <= 0 or not poll.poll(1000 * left):
                raise ReplyTimeout
        part = os.read(descriptor, min(size - len(parts), 1 << 20))
        if not part:
            raise ConnectionClosed
        parts += part
    return bytes(parts)
