"""UUIDs that sort by the time they were made (version 7, RFC 9562 section 5.7)."""

from __future__ import annotations

import os
import time
from uuid import UUID

_RANDOM_BITS = 74


def uuid7() -> UUID:
    """A new version 7 UUID: 48 bits of Unix time in milliseconds, 74 random bits.

    Order within one millisecond is random. Nothing may rely on the time in it: the application's
    clock can be set back. It only keeps neighbouring jobs together in an index.
    """
    millis = time.time_ns() // 1_000_000 & (1 << 48) - 1
    noise = int.from_bytes(os.urandom(10)) & (1 << _RANDOM_BITS) - 1
    high, low = noise >> 62, noise & (1 << 62) - 1
    return UUID(int=millis << 80 | 0x7 << 76 | high << 64 | 0b10 << 62 | low)
