"""Forward passes of a torch model: batch by batch on the device's one thread, halved where need be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from inference.device.device_thread import DeviceThread
from inference.errors import BackendUnavailable, InferenceFailed, OutOfMemory

T = TypeVar("T")


class DeviceBatches:
    """Cuts calls into batches and runs them. Safe to call from several threads.

    Args:
        torch: the module, imported by who loads models.
        thread: the device's.
        budget: most padded tokens in a batch; a single text may exceed it.
    """

    def __init__(self, torch: Any, thread: DeviceThread, budget: int) -> None:
        self._torch = torch
        self._thread = thread
        self._budget = budget

    def run(
        self, tokens: Sequence[int], forward: Callable[[list[int]], T], *, urgent: bool = False
    ) -> Iterator[tuple[list[int], T]]:
        """Compute all texts of a call.

        Args:
            tokens: of each text.
            forward: computes the texts at some places; called on the device's thread.
            urgent: someone waits; goes before work that is not urgent, at the next batch.

        Yields:
            Places, and what `forward` returned for them; each place once.

        Raises:
            OutOfMemory: not even one text at a time fits the device.
            InferenceFailed: the model raised, also for one text alone; `indices` is its place.
            Unavailable: the device is lost to this process.
        """
        waiting = sub_batches(tokens, self._budget)[::-1]
        ceiling = float("inf")
        while waiting:
            places = waiting.pop()
            if len(places) > 1 and padded_tokens(tokens, places) > ceiling:
                waiting += _halve(places)
                continue
            try:
                part = self._thread.run(self._guarded(forward, places), urgent=urgent)
            except (OutOfMemory, InferenceFailed) as error:
                if len(places) == 1:
                    raise type(error)(str(error), indices=places) from None
                if isinstance(error, OutOfMemory):
                    ceiling = padded_tokens(tokens, places) / 2
                waiting += _halve(places)
                continue
            yield places, part

    def _guarded(self, forward: Callable[[list[int]], T], places: list[int]) -> Callable[[], T]:
        """One batch, its errors those of the family."""
        torch = self._torch

        def work() -> T:
            try:
                return forward(places)
            except torch.OutOfMemoryError:
                pass
            except torch.AcceleratorError:
                # The device's context is broken for good; only a new process gets a new one.
                raise BackendUnavailable("the device failed; the process must restart") from None
            except MemoryError:
                pass
            except Exception as error:  # its message may hold the text
                message = f"the model raised {type(error).__name__}"
                raise InferenceFailed(message) from None
            # Outside the handler: inside, the traceback would still hold the tensors.
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            raise OutOfMemory

        return work


def _halve(places: list[int]) -> list[list[int]]:
    middle = (len(places) + 1) // 2
    return [places[middle:], places[:middle]]


# Which texts are computed together. Knows nothing of models.


def sub_batches(tokens: Sequence[int], budget: int) -> list[list[int]]:
    """Cut texts into batches of similar length, the longest first.

    A batch is padded to its longest text, so neighbours in length go together, and what a batch
    costs is its longest text times its number of texts.

    Args:
        tokens: of each text.
        budget: most padded tokens in a batch; a single text may exceed it.

    Returns:
        Places of the texts, each exactly once.
    """
    order = sorted(range(len(tokens)), key=tokens.__getitem__, reverse=True)
    batches: list[list[int]] = []
    longest = 0
    for place in order:
        if not batches or (len(batches[-1]) + 1) * longest > budget:
            batches.append([])
            longest = max(1, tokens[place])
        batches[-1].append(place)
    return batches


def padded_tokens(tokens: Sequence[int], places: Sequence[int]) -> int:
    """What a batch of these places costs."""
    return len(places) * max((tokens[place] for place in places), default=0)
