"""`python -m workers.demo`: start a stack unless one runs, do every kind of job, print, stop."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from rich.console import Console

from vestry import Vestry, VestryError
from workers.demo import indexing, kinds, report
from workers.home import default_home
from workers.stack.background import BackgroundStack, running_in, start_background
from workers.stack.supervisor import StartError

PATIENCE_S = 300.0
"""For the stack to be ready; a slow machine takes a minute."""


def main() -> int:
    """Run it all; the exit status."""
    # `kill` ends it in order too: the stack it started is stopped on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    console = Console(width=None if sys.stdout.isatty() else 110, highlight=False)
    began = time.monotonic()
    try:
        with stack(console) as running:
            client = running.client
            for note in client.get("models", {}).get("notes", ()):
                console.print(note)
            with (
                Vestry(client["database_url"], client["keyring"]) as vestry,
                psycopg.connect(client["database_url"], autocommit=True) as conn,
            ):
                all_well = show(vestry, conn, console)
    except (VestryError, StartError) as error:
        console.print(f"[bold red]{type(error).__name__}:[/] {error}")
        return 1
    console.print(f"Done in {time.monotonic() - began:.0f} s.")
    return 0 if all_well else 1


@contextmanager
def stack(console: Console) -> Iterator[BackgroundStack]:
    """The stack that runs in this home, left running; or one that is started and stopped."""
    running = running_in(default_home())
    if running is not None:
        console.print("A stack is running here already: it is used, and left running.")
        until = time.monotonic() + PATIENCE_S
        while not running.state().get("ready"):
            if time.monotonic() > until or not running.running():
                raise StartError("the stack that was running here did not become ready")
            time.sleep(0.1)
        yield running
        return
    began = time.monotonic()
    console.print("Starting Postgres, Valkey, a language model, dispatcher, reconciler, workers …")
    with start_background(flower=False) as running:
        console.print(f"Every process is ready after {time.monotonic() - began:.0f} s.")
        yield running
        console.print("\nStopping everything …")


def show(vestry: Vestry, conn: psycopg.Connection, console: Console) -> bool:
    """Every kind of job, and what came of it; whether all of it was as it should be."""
    since = conn.execute("SELECT vestry.clock()").fetchone()
    assert since is not None  # noqa: S101 - a row always comes
    # Enqueued first and looked at last: they run beside the index, and nothing waits for it.
    asked = kinds.enqueue(vestry, conn)
    console.print("\nIndexing; where there is much to embed, two cores take half a minute …")
    well = indexing.show(vestry, conn, console)
    well &= kinds.show(vestry, asked, console)
    well &= kinds.show_answer(vestry, conn, console)
    report.show_lanes(conn, since[0], console)
    return well


if __name__ == "__main__":
    sys.exit(main())
