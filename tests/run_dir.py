"""The directory that all processes of a test run share, and the start times recorded in it.

Each process of the run has its own temporary directory below it.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

VARIABLE: Final = "VESTRY_TESTS_RUN_DIR"
TEMPLATE: Final = "template"
"""The home below it that `tests/cluster_template.py` creates."""
_STARTS: Final = "starts.jsonl"


def run_dir() -> Path | None:
    """The directory of this run; None outside a run, as in `make faults`."""
    path = os.environ.get(VARIABLE)
    return Path(path) if path else None


def create() -> Path:
    """Create the directory, and name it in the environment of later child processes."""
    path = Path(tempfile.mkdtemp(prefix="vestry-tests-")).resolve()
    if os.geteuid() == 0:
        path.chmod(0o711)  # the servers' account must traverse it
    os.environ[VARIABLE] = str(path)
    return path


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Exclude the other processes of the run from this block."""
    directory = run_dir()
    assert directory is not None
    with (directory / f"{name}.lock").open("w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def timed_start(kind: str) -> Iterator[None]:
    """Record how long the block took to start something of this kind."""
    start = time.monotonic()
    yield
    directory = run_dir()
    if directory is not None:
        line = json.dumps([kind, time.monotonic() - start]).encode() + b"\n"
        descriptor = os.open(directory / _STARTS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)


def start_times() -> dict[str, list[float]]:
    """Seconds of each start by kind, the kind with the largest sum first."""
    directory = run_dir()
    times: dict[str, list[float]] = defaultdict(list)
    if directory is not None and (directory / _STARTS).exists():
        for line in (directory / _STARTS).read_text(encoding="utf-8").splitlines():
            kind, seconds = json.loads(line)
            times[kind].append(seconds)
    return dict(sorted(times.items(), key=lambda item: -sum(item[1])))
