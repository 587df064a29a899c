"""One thread runs everything; urgent work goes first and cannot starve the rest."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from inference.device.batching import MAX_PREEMPTIONS, DeviceThread


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Opened at the end in any case: nobody is to wait behind it for ever."""
    made = threading.Event()
    yield made
    made.set()


@pytest.fixture
def callers(gate: threading.Event) -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(64) as pool:
        yield pool
        gate.set()


def closed(
    callers: ThreadPoolExecutor, device: DeviceThread, gate: threading.Event
) -> Future[bool]:
    """The device's thread at the gate: what is asked of it from now on stands in line."""
    there = threading.Event()

    def wait() -> bool:
        there.set()
        return gate.wait()

    waiting = callers.submit(device.run, wait)
    assert there.wait(10)
    return waiting


def wait_for_queue(device: DeviceThread, length: int) -> None:
    deadline = time.monotonic() + 10
    while len(device._urgent) + len(device._bulk) < length:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_all_work_runs_on_one_thread(callers: ThreadPoolExecutor) -> None:
    device = DeviceThread("device")
    names = list(callers.map(lambda _: device.run(threading.current_thread), range(50)))
    assert len(set(names)) == 1
    assert names[0].name == "device"
    assert names[0].daemon


def test_an_error_reaches_its_own_caller_and_the_thread_goes_on() -> None:
    device = DeviceThread("device")

    def fail() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        device.run(fail)
    assert device.run(lambda: 5) == 5


def test_urgent_work_waits_for_the_piece_under_way_only(
    callers: ThreadPoolExecutor, gate: threading.Event
) -> None:
    device, order = DeviceThread("device"), list[str]()
    done: list[Future[Any]] = [closed(callers, device, gate)]
    done += [callers.submit(device.run, lambda: order.append("bulk")) for _ in range(5)]
    wait_for_queue(device, 5)
    done.append(callers.submit(device.run, lambda: order.append("urgent"), urgent=True))
    wait_for_queue(device, 6)
    gate.set()
    for future in done:
        future.result(10)
    assert order == ["urgent"] + ["bulk"] * 5


def test_bulk_gets_its_turn_after_so_many_overtakes(
    callers: ThreadPoolExecutor, gate: threading.Event
) -> None:
    device, order = DeviceThread("device"), list[str]()
    done: list[Future[Any]] = [closed(callers, device, gate)]
    done.append(callers.submit(device.run, lambda: order.append("bulk")))
    done += [
        callers.submit(device.run, lambda: order.append("urgent"), urgent=True)
        for _ in range(MAX_PREEMPTIONS + 10)
    ]
    wait_for_queue(device, MAX_PREEMPTIONS + 11)
    gate.set()
    for future in done:
        future.result(10)
    assert order.index("bulk") == MAX_PREEMPTIONS
