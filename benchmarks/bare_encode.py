"""A bare `SentenceTransformer.encode`, in a process of its own: the peer of the embedding benchmark.

`python -m benchmarks.bare_encode THREADS` reads lines of JSON, each a list of texts, and answers
each with the seconds that encoding them took.
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
"""The library's own default."""


@dataclass(frozen=True, slots=True)
class BareEncoder:
    """A loaded model in another process."""

    process: subprocess.Popen[str]

    def seconds(self, texts: Sequence[str]) -> float:
        """How long it takes to encode texts."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(list(texts)) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError("the bare encoder ended")
        return float(answer)


@contextmanager
def bare_encoder(threads: int, nice: int) -> Iterator[BareEncoder]:
    """Load the model once for all rounds of the block; `nice` is the process's priority."""
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
    """Serve until the input ends."""
    threads = int(sys.argv[1])
    stay_offline()
    set_threads(threads)
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415 - after the threads

    set_threads(threads)
    model = SentenceTransformer(str(locate(None).path), device="cpu", local_files_only=True)
    for line in sys.stdin:
        texts = json.loads(line)
        begun = time.perf_counter()
        # All of them in one call: it sorts by length, so nothing is padded more than it must be.
        vectors = model.encode(texts, batch_size=BATCH, show_progress_bar=False)
        took = time.perf_counter() - begun
        assert len(vectors) == len(texts)
        print(took, flush=True)


if __name__ == "__main__":
    main()
