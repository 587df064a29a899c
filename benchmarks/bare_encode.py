"""A bare `SentenceTransformer.encode` in its own process: the baseline of the embedding benchmark.

`python -m benchmarks.bare_encode THREADS` reads lines of JSON, each a list of texts, and prints the
seconds that the encoding of each line took.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from inference.device.model_files import locate, stay_offline
from inference.device.threads import set_threads
from workers.home import CHECKOUT
from workers.stack.process import base_environment

BATCH = 32
"""The library's default."""


@dataclass(frozen=True, slots=True)
class BareEncoder:
    """A loaded model in another process."""

    process: subprocess.Popen[str]

    def seconds(self, texts: Sequence[str]) -> float:
        """Encode texts; returns the seconds that it took."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(list(texts)) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the bare encoder ended")
        return float(line)


@contextmanager
def bare_encoder(threads: int, nice: int) -> Iterator[BareEncoder]:
    """Load the model once for all rounds of the block, in a process of priority `nice`."""
    process = subprocess.Popen(
        ["nice", "-n", str(nice), sys.executable, "-m", "benchmarks.bare_encode", str(threads)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=base_environment(),
        cwd=CHECKOUT,
    )
    try:
        encoder = BareEncoder(process)
        encoder.seconds(["warm"] * BATCH)
        yield encoder
    finally:
        process.kill()
        process.wait()


def main() -> None:
    """Encode each line of standard input."""
    threads = int(sys.argv[1])
    stay_offline()
    set_threads(threads)
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415 - after the threads

    set_threads(threads)
    model = SentenceTransformer(str(locate(None).path), device="cpu", local_files_only=True)
    for line in sys.stdin:
        texts = json.loads(line)
        started = time.perf_counter()
        # One call for all texts: it sorts them by length, which keeps padding small.
        vectors = model.encode(texts, batch_size=BATCH, show_progress_bar=False)
        seconds = time.perf_counter() - started
        assert len(vectors) == len(texts)
        print(seconds, flush=True)


if __name__ == "__main__":
    main()
