"""One line of `vestry doctor`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at; `detail` says what was found, or what does not work."""

    name: str
    ok: bool
    detail: str
