"""The text of `VESTRY_` variables: names that have changed, and lists of `name=value` pairs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

RENAMED: Final = {
    "VESTRY_ACCOUNTS": "VESTRY_ISOLATION",
    "VESTRY_BREAKER_LONGEST_S": "VESTRY_BREAKER_MAX_COOLDOWN_S",
    "VESTRY_DEAF_S": "VESTRY_STALL_TIMEOUT_S",
    "VESTRY_DOORS": "VESTRY_FORWARD",
    "VESTRY_DOOR_ADDRESS": "VESTRY_FORWARD_ADDRESS",
    "VESTRY_SCRATCH": "VESTRY_TEMP_DIR",
    "VESTRY_WINDOW": "VESTRY_HINTS_PER_SLOT",
}
"""Former variable name to its present one."""


def reject_renamed(names: Iterable[str]) -> None:
    """Refuse a former variable name, in any case: ignoring it would silently drop its value.

    Raises:
        ValueError: a name has changed; the message has the new one.
    """
    if former := sorted(name for name in set(names) if name.upper() in RENAMED):
        raise ValueError(
            "; ".join(f"{name} was renamed: set {RENAMED[name.upper()]} instead" for name in former)
        )


def parse_pair(text: str) -> tuple[str, str | None]:
    """Split `name=value`; the value is None where there is no `=`."""
    name, equals, value = text.partition("=")
    return name, value if equals else None


def parse_pairs(text: str) -> dict[str, str]:
    """Parse `name` and `name=value`, separated by blanks or commas; a bare name has an empty value."""
    return {name: value or "" for name, value in map(parse_pair, text.replace(",", " ").split())}


def format_pairs(pairs: Mapping[str, str]) -> str:
    """Format pairs so that `parse_pairs` reads them again."""
    return " ".join(f"{name}={value}" if value else name for name, value in pairs.items())
