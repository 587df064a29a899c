"""Sets of labels kept between batches, so that the next text of the same set costs its own vector only.

What is kept is prototypes, under a digest: no name, no description, no example. A private job's digest
is keyed with its owner's key, so that what one owner's labels are can neither be found by another's
nor be guessed from the key; and as vectors of private text can be turned back into something like it,
a set that nobody asked for within ten minutes is dropped with the next batch.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from tasks.label_similarity import LabelSet

PROTOTYPES_MOST: Final = 4_000
"""Over all sets: some 12 MB at 384 dimensions."""
IDLE_S: Final = 600.0


class LabelSets:
    """Bounded; the set that was not asked for longest goes first. Threads share it.

    Args:
        most: prototypes over all sets.
        idle_s: seconds without being asked for, after which a set is dropped.
        clock: of seconds.
    """

    def __init__(
        self,
        most: int = PROTOTYPES_MOST,
        idle_s: float = IDLE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most = most
        self._idle_s = idle_s
        self._clock = clock
        self._lock = threading.Lock()
        self._sets: OrderedDict[bytes, tuple[LabelSet, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sets)

    def get(self, key: bytes) -> LabelSet | None:
        """A set by its key."""
        with self._lock:
            self._drop_idle()
            found = self._sets.pop(key, None)
            if found is None:
                return None
            self._sets[key] = (found[0], self._clock())
            return found[0]

    def put(self, key: bytes, made: LabelSet) -> None:
        """Keep a set; others may have to go."""
        with self._lock:
            self._drop_idle()
            self._sets.pop(key, None)
            self._sets[key] = (made, self._clock())
            while self._sets and self._size() > self._most:
                self._sets.popitem(last=False)

    def _size(self) -> int:
        return sum(len(made.prototypes) for made, _ in self._sets.values())

    def _drop_idle(self) -> None:
        oldest = self._clock() - self._idle_s
        while self._sets and next(iter(self._sets.values()))[1] < oldest:
            self._sets.popitem(last=False)
