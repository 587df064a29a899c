"""The whole stack with real workers on the echo backend, and leases short enough to wait for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from tests.temp_stack_dir import temporary_home
from vestry.jobs.base import Prepared
from vestry.lanes import Pool
from workers.stack.background import BackgroundStack, start_background

SETTINGS = {
    "VESTRY_EMBEDDING_BACKEND": "echo",
    "VESTRY_LEASE_S": "3",
    "VESTRY_HEARTBEAT_S": "0.5",
    "VESTRY_BACKOFF_CAP_S": "0.2",
}


@dataclass(frozen=True, slots=True)
class Handmade:
    """A job with a payload that the library would never write."""

    payload: bytes
    kind: ClassVar[str] = "embedding"

    def prepare(self, digest: Any, payload_limit: int = 0) -> Prepared:
        del digest, payload_limit
        return Prepared(
            kind=self.kind, pool=Pool.GPU, model=None, payload=self.payload, units=1,
            keep_payload=True,
        )  # fmt: skip


FLOWERS = ("flower-private", "flower-shareable")
INFERENCE = (
    "dispatcher", "reconciler", "private-interactive-gpu", "private-bulk-gpu",
    "shareable-interactive-gpu", "shareable-bulk-gpu",
)  # fmt: skip
"""All but the workers for OCR, which cost a second each to start."""

BULK_S = 240.0
"""Patience with a stack whose bulk workers have the lowest priority, beside whatever else is tested."""


@contextmanager
def echo_stack(*, flower: bool) -> Iterator[BackgroundStack]:
    """A stack in a directory of its own, both gone at the end."""
    only = (*INFERENCE, *(FLOWERS if flower else ()))
    with (
        temporary_home() as home,
        start_background(home, SETTINGS, flower=flower, only=only) as running,
    ):
        yield running


def eventually(check: Callable[[], bool], within: float = 60.0) -> None:
    """Wait until something is so; an AssertionError where it does not come about."""
    until = time.monotonic() + within
    while not check():
        assert time.monotonic() < until, "it did not come about in time"
        time.sleep(0.02)
