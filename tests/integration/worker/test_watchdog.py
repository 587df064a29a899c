"""The watchdog ends a worker that is idle beside runnable jobs, or whose threads have stopped."""

from __future__ import annotations

import time
from typing import Any

import psycopg
import pytest

from tests.in_process_fetcher import LANE
from tests.job_helpers import submit
from tests.waiting import eventually
from vestry import Vestry
from workers.execution.heartbeat import RESTART_EXIT_CODE
from workers.execution.watchdog import StallWatchdog
from workers.stack.dev_stack import DevStack


class FakeHeartbeat:
    """A heartbeat whose leases and last round a test sets."""

    def __init__(self) -> None:
        self.last_round_at = time.monotonic()
        self.leases: list[Any] = []

    def held_leases(self) -> list[Any]:
        return self.leases


@pytest.fixture
def heartbeat() -> FakeHeartbeat:
    return FakeHeartbeat()


@pytest.fixture
def exit_codes() -> list[int]:
    return []


@pytest.fixture
def watchdog(clean: DevStack, heartbeat: Any, exit_codes: list[int]) -> StallWatchdog:
    def connect() -> psycopg.Connection[Any]:
        return psycopg.connect(clean.database_url("vestry_shareable"), autocommit=True)

    return StallWatchdog(connect, [LANE], ["embedding"], heartbeat, 1.2, end=exit_codes.append)


def test_idle_worker_beside_a_runnable_job_ends(
    vestry: Vestry, conn: Any, watchdog: StallWatchdog, exit_codes: list[int]
) -> None:
    watchdog.start()
    time.sleep(1.8)
    watchdog.record_poll()
    assert exit_codes == [], "no job is runnable"
    submit(vestry, conn, "x")
    eventually(lambda: RESTART_EXIT_CODE in exit_codes, within=30)
    watchdog.stop()


@pytest.mark.parametrize(
    "reason", ["holds a lease", "makes progress", "job locked", "lane paused", "job not due"]
)
def test_worker_with_a_reason_to_be_idle_keeps_running(  # noqa: PLR0917 - pytest's, by name
    clean: DevStack, vestry: Vestry, conn: Any, heartbeat: FakeHeartbeat, watchdog: StallWatchdog,
    exit_codes: list[int], reason: str,
) -> None:  # fmt: skip
    (job,) = submit(vestry, conn, "x")
    with psycopg.connect(clean.superuser_url) as other:
        if reason == "job locked":
            other.execute("SELECT FROM vestry.jobs WHERE id = %s FOR UPDATE", [job])
        if reason == "lane paused":
            vestry.pause_lane(LANE)
        if reason == "holds a lease":
            heartbeat.leases = ["one"]
        if reason == "job not due":
            other.execute(
                "UPDATE vestry.jobs SET start_tag = NULL, run_at = now() + interval '1 h'"
            )
            other.commit()
        watchdog.start()
        for _ in range(15):
            time.sleep(0.2)
            watchdog.record_poll()
            heartbeat.last_round_at = time.monotonic()
            if reason == "makes progress":
                watchdog.record_progress()
        watchdog.stop()
    assert exit_codes == []


@pytest.mark.parametrize("stopped", ["heartbeat", "fetch threads"])
def test_worker_with_a_stopped_thread_ends(
    heartbeat: FakeHeartbeat, watchdog: StallWatchdog, exit_codes: list[int], stopped: str
) -> None:
    watchdog.start()
    until = time.monotonic() + 30
    while not exit_codes and time.monotonic() < until:
        time.sleep(0.1)
        if stopped == "fetch threads":
            heartbeat.last_round_at = time.monotonic()
        else:
            watchdog.record_poll()
    watchdog.stop()
    assert exit_codes[0] == RESTART_EXIT_CODE
