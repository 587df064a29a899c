"""The lane table, privacy x latency x pool, and the pool of each kind.

A lane has a broker queue and a queue of jobs per kind. `private.*.cloud` is not in the table, and no
setting adds it: the first privacy wall is that the combination has no name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal


class Privacy(StrEnum):
    """The privacy class of a job's content."""

    PRIVATE = "private"
    SHAREABLE = "shareable"


class Latency(StrEnum):
    """Interactive jobs, whose result a user waits for, run before bulk jobs."""

    INTERACTIVE = "interactive"
    BULK = "bulk"


class Pool(StrEnum):
    """The workers that run a job: for model inference, other CPU work, or API calls."""

    GPU = "gpu"
    CPU = "cpu"
    CLOUD = "cloud"


@dataclass(frozen=True, slots=True)
class Lane:
    """One lane. Its name, `privacy.latency.pool`, is an argument of `celery worker -Q`."""

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
"""The kinds, and the pool that each runs in unless a cloud serves it."""

WITH_FILES: Final[frozenset[Kind]] = frozenset({"ocr"})
"""Kinds whose jobs carry files."""
