"""Computation of models on a device: one thread with two queues, and batches that fit its memory."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import cache
from typing import Any, Final, TypeVar

from inference.errors import BackendUnavailable, InferenceError, InferenceFailed, OutOfMemory
from vestry.bisection import bisect_failures

T = TypeVar("T")

MAX_PREEMPTIONS: Final = 20
"""Urgent pieces that may run before a waiting bulk piece: bulk work is slowed, never starved."""


class DeviceThread:
    """Runs small pieces of work one at a time, urgent ones first.

    A single thread keeps a GPU's context and, on a CPU, the maths library's one thread team; with
    several calling threads each would have a team, all spinning on the same cores.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._condition = threading.Condition()
        self._urgent: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._bulk: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._preemptions = 0
        self._thread: threading.Thread | None = None

    def run(self, work: Callable[[], T], *, urgent: bool = False) -> T:
        """Run `work` on the device's thread and wait for its result or exception.

        A piece should be short: an urgent one waits for the piece that is running.
        """
        future: Future[T] = Future()
        with self._condition:
            (self._urgent if urgent else self._bulk).append((work, future))
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
                self._thread.start()
            self._condition.notify()
        return future.result()

    def _serve(self) -> None:
        while True:
            with self._condition:
                while not (self._urgent or self._bulk):
                    self._condition.wait()
                work, future = self._next()
            try:
                future.set_result(work())
            except BaseException as error:  # raised in `run`
                future.set_exception(error)
            # An idle thread must not keep references to a job's texts.
            del work, future

    def _next(self) -> tuple[Callable[[], Any], Future[Any]]:
        if not self._bulk:
            return self._urgent.popleft()
        if self._urgent and self._preemptions < MAX_PREEMPTIONS:
            self._preemptions += 1
            return self._urgent.popleft()
        self._preemptions = 0
        return self._bulk.popleft()


@cache
def device_thread(device: str) -> DeviceThread:
    """The thread of a device, such as `cpu` or `cuda:0`, shared by all models on it."""
    return DeviceThread(f"device-{device}")


class DeviceBatches:
    """Splits calls into batches and runs them. Safe to call from several threads.

    Args:
        torch: the module; passed in, since importing it takes seconds.
        thread: the device's thread.
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

        A batch that does not fit the device's memory is halved, and so are the later batches of the
        call that are larger than a half of it; a batch for which the model raises is halved too.

        Args:
            tokens: number of tokens of each text.
            forward: computes the texts of some indices; called on the device's thread.
            urgent: of an interactive job; runs before work that is not urgent, at the next batch.

        Yields:
            Indices, and the result of `forward` for them; each index once.

        Raises:
            OutOfMemory: not even a single text fits the device.
            InferenceFailed: the model raised for a single text; `indices` is its index.
            BackendUnavailable: this process has lost the device.
        """
        ceiling = float("inf")

        def compute(indices: Sequence[int]) -> T:
            nonlocal ceiling
            if len(indices) > 1 and padded_tokens(tokens, indices) > ceiling:
                raise OutOfMemory
            try:
                return self._thread.run(self._guarded(forward, list(indices)), urgent=urgent)
            except OutOfMemory:
                ceiling = min(ceiling, padded_tokens(tokens, indices) / 2)
                raise

        for batch in sub_batches(tokens, self._budget):
            for indices, result in bisect_failures(batch, compute, (OutOfMemory, InferenceFailed)):
                if isinstance(result, InferenceError):
                    raise type(result)(str(result), indices=indices) from None
                yield list(indices), result

    def _guarded(self, forward: Callable[[list[int]], T], indices: list[int]) -> Callable[[], T]:
        """One batch, with the model's exceptions mapped to `InferenceError`."""
        torch = self._torch

        def work() -> T:
            try:
                return forward(indices)
            except torch.OutOfMemoryError:
                pass
            except torch.AcceleratorError:
                # The device's context is lost for good; only a new process gets a new one.
                raise BackendUnavailable("the device failed; restart the worker") from None
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


def sub_batches(tokens: Sequence[int], budget: int) -> list[list[int]]:
    """Group texts into batches of similar length, the longest first.

    A batch is padded to its longest text: its cost is the longest text times the number of texts.

    Args:
        tokens: number of tokens of each text.
        budget: most padded tokens in a batch; a single text may exceed it.

    Returns:
        Indices of the texts, each exactly once.
    """
    order = sorted(range(len(tokens)), key=tokens.__getitem__, reverse=True)
    batches: list[list[int]] = []
    longest = 0
    for index in order:
        if not batches or (len(batches[-1]) + 1) * longest > budget:
            batches.append([])
            longest = max(1, tokens[index])
        batches[-1].append(index)
    return batches


def padded_tokens(tokens: Sequence[int], indices: Sequence[int]) -> int:
    """The cost of a batch of these texts."""
    return len(indices) * max((tokens[index] for index in indices), default=0)
