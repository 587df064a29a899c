"""The device thread runs urgent work first; batches hold every text once, within the budget."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.device.batching import MAX_PREEMPTIONS, DeviceThread, padded_tokens, sub_batches
from tests.waiting import eventually


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """Set at the end of the test, so that no thread waits forever."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def callers(release: threading.Event) -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(64) as pool:
        yield pool
        release.set()


def blocked(
    callers: ThreadPoolExecutor, device: DeviceThread, release: threading.Event
) -> Future[bool]:
    """Occupy the device thread until `release` is set: work submitted from now on is queued."""
    started = threading.Event()

    def wait() -> bool:
        started.set()
        return release.wait()

    future = callers.submit(device.run, wait)
    assert started.wait(10)
    return future


def wait_for_queue(device: DeviceThread, length: int) -> None:
    eventually(lambda: len(device._urgent) + len(device._bulk) >= length, within=10)


def test_device_thread_runs_all_work(callers: ThreadPoolExecutor) -> None:
    device = DeviceThread("device")
    threads = list(callers.map(lambda _: device.run(threading.current_thread), range(50)))
    assert len(set(threads)) == 1
    assert threads[0].name == "device"
    assert threads[0].daemon


def test_device_thread_raises_error_in_caller_and_continues() -> None:
    device = DeviceThread("device")

    def fail() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        device.run(fail)
    assert device.run(lambda: 5) == 5


def test_device_thread_runs_urgent_work_after_the_running_piece(
    callers: ThreadPoolExecutor, release: threading.Event
) -> None:
    device, order = DeviceThread("device"), list[str]()
    futures: list[Future[Any]] = [blocked(callers, device, release)]
    futures += [callers.submit(device.run, lambda: order.append("bulk")) for _ in range(5)]
    wait_for_queue(device, 5)
    futures.append(callers.submit(device.run, lambda: order.append("urgent"), urgent=True))
    wait_for_queue(device, 6)
    release.set()
    for future in futures:
        future.result(10)
    assert order == ["urgent"] + ["bulk"] * 5


def test_device_thread_runs_bulk_work_after_max_preemptions(
    callers: ThreadPoolExecutor, release: threading.Event
) -> None:
    device, order = DeviceThread("device"), list[str]()
    futures: list[Future[Any]] = [blocked(callers, device, release)]
    futures.append(callers.submit(device.run, lambda: order.append("bulk")))
    futures += [
        callers.submit(device.run, lambda: order.append("urgent"), urgent=True)
        for _ in range(MAX_PREEMPTIONS + 10)
    ]
    wait_for_queue(device, MAX_PREEMPTIONS + 11)
    release.set()
    for future in futures:
        future.result(10)
    assert order.index("bulk") == MAX_PREEMPTIONS


@given(st.lists(st.integers(0, 300), max_size=200), st.integers(1, 2_000))
def test_sub_batches_hold_each_text_once_within_budget(tokens: list[int], budget: int) -> None:
    batches = sub_batches(tokens, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(tokens)))
    assert all(len(batch) == 1 or padded_tokens(tokens, batch) <= budget for batch in batches)
    lengths = [tokens[index] for batch in batches for index in batch]
    assert lengths == sorted(lengths, reverse=True)


def test_sub_batches_are_filled() -> None:
    assert [len(batch) for batch in sub_batches([10] * 25, 100)] == [10, 10, 5]
    assert sub_batches([500], 100) == [[0]]
    assert sub_batches([], 100) == []
