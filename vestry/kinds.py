"""The kinds of job: stable names, which are Celery's task names and the values of `jobs.kind`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from vestry.lanes import Pool

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
