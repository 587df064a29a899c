"""The whole stack with real workers on the echo backend, and leases short enough to wait for."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from workers.detached import Detached, start_detached

SETTINGS = {
    "VESTRY_EMBEDDING_BACKEND": "echo",
    "VESTRY_LEASE_S": "3",
    "VESTRY_HEARTBEAT_S": "0.5",
    "VESTRY_BACKOFF_CAP_S": "0.2",
}


@contextmanager
def echo_stack(*, flower: bool) -> Iterator[Detached]:
    """A stack in a directory of its own, both gone at the end."""
    home = Path(tempfile.mkdtemp(prefix="vestry-test-"))
    try:
        with start_detached(home, SETTINGS, flower=flower) as running:
            yield running
    finally:
        shutil.rmtree(home, ignore_errors=True)


def eventually(check: Callable[[], bool], within: float = 15.0) -> None:
    """Wait until something is so; an AssertionError where it does not come about."""
    until = time.monotonic() + within
    while not check():
        assert time.monotonic() < until, "it did not come about in time"
        time.sleep(0.02)
