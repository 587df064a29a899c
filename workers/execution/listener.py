"""Hears of interactive work as it is committed, so that an idle worker begins it at once.

An improvement of latency and nothing else: a worker whose ear is deaf still gets hints through the
broker and looks for itself every VESTRY_POLL_S.
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
"""Pause before a lost connection is made again: short, since lanes are looked at only after it."""
CONNECTION_CHECK_S: Final = 10.0
"""How often it is seen to that somebody is at the other end."""
SHUTDOWN_POLL_S: Final = 1.0
"""How long the end of the process may go unnoticed."""


class LaneListener:
    """A thread with a connection of its own that wakes the lanes it hears of.

    Args:
        connect: makes a connection that commits by itself.
        lanes: those of interest.
        wake: called with a lane in which there may be work; must return at once.
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
        self._thread = threading.Thread(target=self._run, name="ear", daemon=True)

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread within BREATH_S."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with self._connect() as conn:
                    with deadline(conn, CONNECTION_CHECK_S):
                        conn.execute("LISTEN vestry_lane")
                    # What came while nobody listened was not heard.
                    self._notify_lanes(self._lanes)
                    self._receive(conn)
            except psycopg.Error as error:
                log.warning("the ear is deaf (%s); hints and polling go on", type(error).__name__)
                self._stop.wait(RECONNECT_S)

    def _receive(self, conn: psycopg.Connection[Any]) -> None:
        listened = time.monotonic()
        while not self._stop.is_set():
            heard = {note.payload for note in conn.notifies(timeout=SHUTDOWN_POLL_S, stop_after=1)}
            if time.monotonic() - listened > CONNECTION_CHECK_S:
                # Silence is what a connection to nowhere sounds like, too.
                with deadline(conn, CONNECTION_CHECK_S):
                    conn.execute("SELECT 1")
                listened = time.monotonic()
            if heard:
                # Whatever else has arrived, so that a burst wakes a lane once.
                heard |= {note.payload for note in conn.notifies(timeout=0)}
                self._notify_lanes(self._lanes & heard)

    def _notify_lanes(self, lanes: Iterable[str]) -> None:
        for lane in lanes:
            self._notify(lane)
