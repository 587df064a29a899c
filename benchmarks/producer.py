"""A producer of many jobs in its own process, so that its memory can be measured.

`python -m benchmarks.producer OWNER COUNT` enqueues COUNT jobs in one transaction, in the stack of
VESTRY_HOME, and prints the seconds and the peak memory as JSON.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vestry import Embedding, Vestry
from vestry.settings import resolve
from workers.home import CHECKOUT
from workers.stack.process import base_environment

TEXT = "Up early, and to the office, where we sat all the morning."


@dataclass(frozen=True, slots=True)
class ProducerRun:
    """Seconds for the transaction, and the process's peak resident memory in MB."""

    seconds: float
    peak_mb: float


def run_producer(home: Path, owner: str, count: int) -> ProducerRun:
    """Run the producer on the stack in `home`, and wait until it ends."""
    completed = subprocess.run(
        [sys.executable, "-m", "benchmarks.producer", owner, str(count)],
        env={**base_environment(), "VESTRY_HOME": str(home)},
        cwd=CHECKOUT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return ProducerRun(**json.loads(completed.stdout))


def main() -> None:
    """Enqueue, and print the measurements."""
    import psycopg  # noqa: PLC0415 - its memory counts as the producer's

    owner, count = sys.argv[1], int(sys.argv[2])
    with Vestry() as vestry, psycopg.connect(resolve(None, None).conninfo) as conn:
        started = time.perf_counter()
        vestry.enqueue_many(
            conn, (Embedding(texts=[TEXT]) for _ in range(count)), owner=owner, privacy="private"
        )
        conn.commit()
        seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "peak_mb": peak_mb()}))


def peak_mb() -> float:
    """Peak resident memory of this process, in MB."""
    # On Linux ru_maxrss includes the parent's memory at the time of the fork; VmHWM does not.
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
