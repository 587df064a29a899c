"""Listener: passes on Postgres notifications of interactive jobs, so that idle workers begin at once.

It only improves latency: without it a worker still gets hints from the broker and polls every
VESTRY_POLL_S.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

import psycopg

from workers.db import deadline

log = logging.getLogger(__name__)

RECONNECT_S: Final = 0.5
"""Pause before reconnecting: short, since notifications are missed meanwhile."""
CONNECTION_CHECK_S: Final = 10.0
"""Interval of connection checks, and their timeout."""
SHUTDOWN_POLL_S: Final = 1.0
"""Longest delay before a stop is noticed."""


class LaneListener:
    """A thread with its own connection that passes on the notifications of some lanes.

    Args:
        connect: opens an autocommit connection.
        lanes: to listen for.
        notify: called with a lane in which there may be work; returns at once.
    """

    def __init__(
        self,
        connect: Callable[[], psycopg.Connection[Any]],
        lanes: Iterable[str],
        notify: Callable[[str], None],
    ) -> None:
        self._connect = connect
        self._lanes = frozenset(lanes)
        self._notify = notify
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pg-listener", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread within SHUTDOWN_POLL_S."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with self._connect() as conn:
                    with deadline(conn, CONNECTION_CHECK_S):
                        conn.execute("LISTEN vestry_lane")
                    # Notifications sent before LISTEN are lost: assume one for each lane.
                    self._notify_lanes(self._lanes)
                    self._receive(conn)
            except psycopg.Error as error:
                reason = type(error).__name__
                log.warning(
                    "LISTEN connection lost (%s); falling back to hints and polling", reason
                )
                self._stop.wait(RECONNECT_S)

    def _receive(self, conn: psycopg.Connection[Any]) -> None:
        checked_at = time.monotonic()
        while not self._stop.is_set():
            notified = {
                note.payload for note in conn.notifies(timeout=SHUTDOWN_POLL_S, stop_after=1)
            }
            if time.monotonic() - checked_at > CONNECTION_CHECK_S:
                # A half-open connection delivers no notification either.
                with deadline(conn, CONNECTION_CHECK_S):
                    conn.execute("SELECT 1")
                checked_at = time.monotonic()
            if notified:
                # Include all others that have arrived: a burst notifies a lane once.
                notified |= {note.payload for note in conn.notifies(timeout=0)}
                self._notify_lanes(self._lanes & notified)

    def _notify_lanes(self, lanes: Iterable[str]) -> None:
        for lane in lanes:
            self._notify(lane)
