"""The directory that all processes of one run of the tests share, and what they note in it.

Each process of the run has a temporary directory of its own below it.
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
"""The home in it that `tests/cluster_template.py` makes."""
_STARTS: Final = "starts.jsonl"


def run_dir() -> Path | None:
    """The directory of this run; None outside a run, as in `make faults`."""
    path = os.environ.get(VARIABLE)
    return Path(path) if path else None


def create() -> Path:
    """Make the directory, and name it to the processes started from now on."""
    path = Path(tempfile.mkdtemp(prefix="vestry-tests-")).resolve()
    if os.geteuid() == 0:
        path.chmod(0o711)  # the servers' account passes through
    os.environ[VARIABLE] = str(path)
    return path


@contextmanager
def locked(name: str) -> Iterator[None]:
    """One process of the run at a time."""
    directory = run_dir()
    assert directory is not None
    with (directory / f"{name}.lock").open("w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def timed_start(kind: str) -> Iterator[None]:
    """Note how long the block took to start something of a kind."""
    began = time.monotonic()
    yield
    directory = run_dir()
    if directory is not None:
        line = json.dumps([kind, time.monotonic() - began]).encode() + b"\n"
        number = os.open(directory / _STARTS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(number, line)
        finally:
            os.close(number)


def start_times() -> dict[str, list[float]]:
    """Kind to the seconds that each start took, the kind with the largest sum first."""
    directory = run_dir()
    times: dict[str, list[float]] = defaultdict(list)
    if directory is not None and (directory / _STARTS).exists():
        for line in (directory / _STARTS).read_text(encoding="utf-8").splitlines():
            kind, seconds = json.loads(line)
            times[kind].append(seconds)
    return dict(sorted(times.items(), key=lambda item: -sum(item[1])))
