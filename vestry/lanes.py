"""The lane table: privacy x latency x pool, and which pool a kind runs in.

A lane is one broker queue and one line of waiting jobs. `private.*.cloud` is not in the table, and
nothing can put it there: the first privacy wall is that the combination has no name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal


class Privacy(StrEnum):
    """Who may see a job's content."""

    PRIVATE = "private"
    SHAREABLE = "shareable"


class Latency(StrEnum):
    """Whether somebody is waiting for the answer."""

    INTERACTIVE = "interactive"
    BULK = "bulk"


class Pool(StrEnum):
    """Which kind of worker runs a job: model inference, other CPU work, or API calls."""

    GPU = "gpu"
    CPU = "cpu"
    CLOUD = "cloud"


@dataclass(frozen=True, slots=True)
class Lane:
    """One queue. Its name, `privacy.latency.pool`, is what `celery worker -Q` takes."""

    privacy: Privacy
    latency: Latency
    pool: Pool

    @property
    def name(self) -> str:
        """`privacy.latency.pool`."""
        return f"{self.privacy}.{self.latency}.{self.pool}"

    def __str__(self) -> str:
        return self.name


LANES: dict[str, Lane] = {
    lane.name: lane
    for privacy in Privacy
    for latency in Latency
    for pool in Pool
    if not (privacy is Privacy.PRIVATE and pool is Pool.CLOUD)
    for lane in [Lane(privacy, latency, pool)]
}
"""The ten lanes, by name."""

Kind = Literal["embedding", "classification", "ocr", "generation", "rerank"]

KINDS: Final[Mapping[Kind, Pool]] = {
    "embedding": Pool.GPU,
    "classification": Pool.GPU,
    "ocr": Pool.CPU,
    "generation": Pool.GPU,
    "rerank": Pool.GPU,
}
"""The kinds, and the pool each runs in on our own hardware."""

WITH_FILES: Final[frozenset[Kind]] = frozenset({"ocr"})
"""Kinds whose jobs carry files."""
