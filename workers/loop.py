"""What the dispatcher and the reconciler have in common: run until told to stop, outlive outages."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from typing import Any

import psycopg

from workers import database
from workers.settings import Settings

Connection = psycopg.Connection[Any]
log = logging.getLogger(__name__)

SILENT_S = 10.0
"""A session of these, which asks something every second, is ended by the server once it is silent for
this long. It may hold the advisory lock that keeps all others of its sort waiting, and belong to a
process that is frozen, or gone behind a proxy that has not noticed."""
CUT_S = 20.0
"""How long one round of such a loop may wait for the database, and for the broker in between."""
LONGEST_PAUSE_S = 2.0
"""Between two attempts to reach a database that refuses connections. After such an outage a lost job
waits for this, a lease's grace and a `poll_s`; promised are a lease and five seconds."""


def stop_on_signals() -> threading.Event:
    """An event that SIGTERM and SIGINT set."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def run_connected(
    settings: Settings,
    name: str,
    stop: threading.Event,
    body: Callable[[Connection], None],
) -> None:
    """Call `body` with a fresh autocommit connection, again after every loss of it, until stopped.

    Args:
        settings: where the database is.
        name: what Postgres shows.
        stop: ends the loop.
        body: runs until `stop` is set or its connection breaks.
    """
    pause = 0.1
    while not stop.is_set():
        try:
            with psycopg.connect(
                settings.database,
                autocommit=True,
                **database.connection_options(
                    name, settings.lease_s, max(SILENT_S, 5 * settings.poll_s)
                ),
            ) as conn:
                pause = 0.1
                body(conn)
        except database.AWAY as error:
            log.warning("%s: database away (%s)", name, type(error).__name__)
            stop.wait(pause)
            pause = min(LONGEST_PAUSE_S, pause * 2)
