"""One thread runs everything; urgent work goes first and cannot starve the rest."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from inference.device_thread import OVERTAKES, DeviceThread


@pytest.fixture
def callers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(64) as pool:
        yield pool


def wait_for_queue(device: DeviceThread, length: int) -> None:
    deadline = time.monotonic() + 10
    while len(device._urgent) + len(device._patient) < length:
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


def test_urgent_work_waits_for_the_piece_under_way_only(callers: ThreadPoolExecutor) -> None:
    device, gate, order = DeviceThread("device"), threading.Event(), list[str]()
    done = [callers.submit(device.run, gate.wait)]
    done += [callers.submit(device.run, lambda: order.append("bulk")) for _ in range(5)]
    wait_for_queue(device, 5)
    done.append(callers.submit(device.run, lambda: order.append("urgent"), urgent=True))
    wait_for_queue(device, 6)
    gate.set()
    for future in done:
        future.result(10)
    assert order == ["urgent"] + ["bulk"] * 5


def test_bulk_gets_its_turn_after_so_many_overtakes(callers: ThreadPoolExecutor) -> None:
    device, gate, order = DeviceThread("device"), threading.Event(), list[str]()
    done = [callers.submit(device.run, gate.wait)]
    done.append(callers.submit(device.run, lambda: order.append("bulk")))
    done += [
        callers.submit(device.run, lambda: order.append("urgent"), urgent=True)
        for _ in range(OVERTAKES + 10)
    ]
    wait_for_queue(device, OVERTAKES + 11)
    gate.set()
    for future in done:
        future.result(10)
    assert order.index("bulk") == OVERTAKES
