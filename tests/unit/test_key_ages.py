"""Owners' keys leave the memory of a process that does nothing, too."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from models import content
from models.content import PrivateContent
from vestry.crypto import owner_keys
from vestry.crypto.keyring import KeyRing
from vestry.crypto.owner_keys import OwnerKeys
from workers.execution.heartbeat import Heartbeat


class Clock:
    """Stands for the module `time`."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(owner_keys, "time", made)
    monkeypatch.setattr(content, "time", made)
    return made


def test_a_client_s_keys_go_with_the_first_look_after_their_time(clock: Clock) -> None:
    keys = OwnerKeys(None)
    keys._keys["ann"] = (object(), clock.now)  # type: ignore[assignment]
    clock.now += owner_keys.KEPT_S
    keys.evict_expired()
    assert list(keys._keys) == ["ann"]
    clock.now += 1
    keys.evict_expired()
    assert not keys._keys


def test_a_worker_s_keys_are_gone_after_two_rounds(clock: Clock, tmp_path: Any) -> None:
    held = PrivateContent(KeyRing.generate(tmp_path / "ring.json"))
    held._keys["ann"] = object()  # type: ignore[assignment]
    for _ in range(2):
        clock.now += content.MAX_CACHED_S + 1
        held.evict_expired()
    assert not held._keys
    assert not held._before


def test_two_threads_that_find_the_keys_old_put_them_aside_once(tmp_path: Any) -> None:
    held = PrivateContent(KeyRing.generate(tmp_path / "ring.json"))
    held._keys["ann"] = object()  # type: ignore[assignment]
    known = held._keys
    for _ in range(2):  # both looked before either did it
        held._start_afresh(known)
    assert list(held._before) == ["ann"]


def test_the_heartbeat_does_the_chores_also_without_a_lease() -> None:
    done: list[int] = []
    heart = Heartbeat(_away, 3.0, 0.01, 60.0, (lambda: done.append(1),))
    heart.start()
    try:
        for _ in range(200):
            if done:
                break
            heart._stop.wait(0.01)
    finally:
        heart.stop()
    assert done


def _away() -> psycopg.Connection[Any]:
    raise psycopg.OperationalError
