"""What the jobs of one call have in common."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Final

from vestry.checks import check_label
from vestry.errors import InvalidInput
from vestry.lanes import Latency, Privacy

RESULT_TTL_S: Final = 7 * 24 * 3600
"""Seconds a result is kept by default."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the jobs of one call have in common; see `Vestry.enqueue`. Validated when made."""

    owner: str
    privacy: str
    latency: str = "bulk"
    task: str | None = None
    quality: str = "adequate"
    tier: str | None = None
    run_at: dt.datetime | None = None
    deadline: dt.datetime | None = None
    max_attempts: int | None = None
    result_ttl_s: int = RESULT_TTL_S

    def __post_init__(self) -> None:
        check_label("owner", self.owner)
        # Plain strings from here on: the driver has its own ideas about enumerations.
        object.__setattr__(self, "privacy", privacy_name(self.privacy))
        if self.latency not in set(Latency):
            raise InvalidInput("latency", "must be interactive or bulk")
        object.__setattr__(self, "latency", Latency(self.latency).value)
        if self.quality not in {"adequate", "best"}:
            raise InvalidInput("quality", "must be adequate or best")
        for name in ("task", "tier"):
            if getattr(self, name) is not None:
                check_label(name, getattr(self, name))
        for name in ("run_at", "deadline"):
            moment = getattr(self, name)
            if moment is not None and (
                not isinstance(moment, dt.datetime) or moment.utcoffset() is None
            ):
                raise InvalidInput(name, "must be a datetime with a time zone")
        if self.max_attempts is not None and not 1 <= self.max_attempts <= 1000:  # noqa: PLR2004
            raise InvalidInput("max_attempts", "must be 1 to 1000")
        if not 0 < self.result_ttl_s < 2**31:
            raise InvalidInput("result_ttl_s", "must be a positive number of seconds")

    @property
    def private(self) -> bool:
        """Whether payloads are sealed."""
        return self.privacy == Privacy.PRIVATE.value


def privacy_name(privacy: object) -> str:
    """`private` or `shareable`, or `InvalidInput`: it is never guessed."""
    if privacy not in set(Privacy):
        raise InvalidInput("privacy", "must be given: private or shareable")
    return Privacy(str(privacy)).value
