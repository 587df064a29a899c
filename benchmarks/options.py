"""What a run is told on its command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from workers.home import CHECKOUT

VERSES = CHECKOUT / "samples" / "verses.txt"


@dataclass(frozen=True, slots=True)
class Options:
    """How large a run is.

    Attributes:
        rounds: how often each side is measured, taking turns.
        share: of the full counts, for a quick look.
        texts: `REFERENCE text` lines to embed.
        threads: for both sides of the embedding benchmark; 0 means the workers' default.
    """

    rounds: int = 3
    share: float = 1.0
    texts: Path = VERSES
    threads: int = 0

    def scaled(self, count: int) -> int:
        """A count at the run's share, never below 20."""
        return max(20, int(count * self.share))
