"""`python -m workers.demo`: start a stack unless one runs, run every kind of job, print, stop."""

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

READY_TIMEOUT_S = 300.0
"""Seconds until the stack must be ready; a slow machine takes a minute."""


def main() -> int:
    """Run the demo; returns the exit status."""
    # On SIGTERM exit in order, so that a stack started here is stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    console = Console(width=None if sys.stdout.isatty() else 110, highlight=False)
    started = time.monotonic()
    try:
        with demo_stack(console) as stack:
            client = stack.client
            for note in client.get("models", {}).get("notes", ()):
                console.print(note)
            with (
                Vestry(client["database_url"], client["keyring"]) as vestry,
                psycopg.connect(client["database_url"], autocommit=True) as conn,
            ):
                succeeded = run_demo(vestry, conn, console)
    except (VestryError, StartError) as error:
        console.print(f"[bold red]{type(error).__name__}:[/] {error}")
        return 1
    console.print(f"Done in {time.monotonic() - started:.0f} s.")
    return 0 if succeeded else 1


@contextmanager
def demo_stack(console: Console) -> Iterator[BackgroundStack]:
    """The stack that runs in the default home, which keeps running, or one started and stopped here."""
    stack = running_in(default_home())
    if stack is not None:
        console.print("A stack already runs here; it is used and keeps running.")
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not stack.state().get("ready"):
            if time.monotonic() > deadline or not stack.running():
                raise StartError("the running stack did not become ready: see `vestry doctor`")
            time.sleep(0.1)
        yield stack
        return
    started = time.monotonic()
    console.print("Starting Postgres, Valkey, a language model, dispatcher, reconciler, workers …")
    with start_background(flower=False) as stack:
        console.print(f"Every process is ready after {time.monotonic() - started:.0f} s.")
        yield stack
        console.print("\nStopping every process …")


def run_demo(vestry: Vestry, conn: psycopg.Connection, console: Console) -> bool:
    """Run every kind of job and print the results; returns whether all are as expected."""
    since = conn.execute("SELECT vestry.clock()").fetchone()
    assert since is not None  # noqa: S101 - the query has one row
    # Enqueued before the index and printed after it, so that both run at the same time.
    jobs = kinds.enqueue_jobs(vestry, conn)
    console.print("\nIndexing; on two cores, embedding everything takes half a minute …")
    succeeded = indexing.index_and_search(vestry, conn, console)
    succeeded &= kinds.print_results(vestry, jobs, console)
    succeeded &= kinds.answer_question(vestry, conn, console)
    report.print_lanes(conn, since[0], console)
    return succeeded


if __name__ == "__main__":
    sys.exit(main())
