"""Options of a benchmark run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from workers.home import CHECKOUT

VERSES = CHECKOUT / "samples" / "verses.txt"


@dataclass(frozen=True, slots=True)
class Options:
    """Size of a run.

    Attributes:
        rounds: alternating rounds of each side.
        share: share of the full counts, 0 to 1, for a quick run.
        texts: file of `REFERENCE text` lines to embed.
        threads: torch threads of both sides of the embedding benchmark; 0: the workers' default.
    """

    rounds: int = 3
    share: float = 1.0
    texts: Path = VERSES
    threads: int = 0

    def scaled(self, count: int) -> int:
        """A count times the run's share, at least 20."""
        return max(20, int(count * self.share))
