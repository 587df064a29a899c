"""Messages between a worker and its OCR processes: JSON objects, each after its length in four bytes.

JSON and not pickle: a process that a hostile file has compromised can send false data, but no code.
"""

from __future__ import annotations

import json
import os
import select
import struct
import time
from typing import Any, Final

MAX_FRAME_BYTES: Final = 64 * 1024 * 1024
"""Longest frame; a page with a million characters and their boxes has fewer bytes."""
_LENGTH: Final = struct.Struct(">I")


class ConnectionClosed(Exception):
    """The other process has ended, or sent a malformed frame."""


class ReplyTimeout(Exception):
    """The other process did not reply in time."""


def send(descriptor: int, message: dict[str, Any]) -> None:
    """Write one frame.

    Raises:
        ConnectionClosed: the other process has closed the pipe.
    """
    body = json.dumps(message, separators=(",", ":")).encode()
    remaining = memoryview(_LENGTH.pack(len(body)) + body)
    try:
        while remaining:
            remaining = remaining[os.write(descriptor, remaining) :]
    except OSError:
        raise ConnectionClosed from None


def receive(descriptor: int, timeout_s: float | None = None) -> dict[str, Any]:
    """Read one frame.

    Args:
        descriptor: of a pipe.
        timeout_s: for the whole frame; None for no timeout.

    Raises:
        ConnectionClosed: the pipe was closed, or the frame is malformed.
        ReplyTimeout: the timeout has passed.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    (size,) = _LENGTH.unpack(_read(descriptor, _LENGTH.size, deadline))
    if size > MAX_FRAME_BYTES:
        raise ConnectionClosed
    try:
        message = json.loads(_read(descriptor, size, deadline))
    except (ValueError, RecursionError):
        raise ConnectionClosed from None
    if not isinstance(message, dict):
        raise ConnectionClosed
    return message


def _read(descriptor: int, size: int, deadline: float | None) -> bytes:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    parts = bytearray()
    while len(parts) < size:
        if deadline is not None:
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0 or not poll.poll(1000 * remaining_s):
                raise ReplyTimeout
        part = os.read(descriptor, min(size - len(parts), 1 << 20))
        if not part:
            raise ConnectionClosed
        parts += part
    return bytes(parts)
