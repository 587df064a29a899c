"""Tables of the demo, and the waiting and running times of its jobs per lane."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import psycopg
from rich.console import Console
from rich.table import Table

JOB_TIMEOUT_S = 300.0
"""Seconds until a job must be finished; a slow machine takes a minute for all of them."""

LANES_QUERY = """
SELECT lane, count(*), count(*) FILTER (WHERE state = 'succeeded'),
       avg(extract(epoch FROM started_at - created_at))::float8,
       max(extract(epoch FROM started_at - created_at))::float8,
       avg(extract(epoch FROM finished_at - started_at))::float8,
       max(extract(epoch FROM finished_at - started_at))::float8
FROM vestry.jobs WHERE created_at >= %s GROUP BY lane ORDER BY lane"""


def print_table(
    console: Console,
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    lines: bool = False,
) -> None:
    """Print an empty line and a table; headings that begin with `#` are right-aligned columns."""
    table = Table(title=title, title_justify="left", show_lines=lines)
    for name in columns:
        table.add_column(name.lstrip("#"), justify="right" if name.startswith("#") else "left")
    for row in rows:
        table.add_row(*("-" if cell is None else str(cell) for cell in row))
    console.print()
    console.print(table)


def print_lanes(conn: psycopg.Connection, since: object, console: Console) -> None:
    """Print the number of jobs enqueued since a time, per lane, with waiting and running times."""
    rows = [
        (lane, jobs, succeeded, *("-" if s is None else f"{s:.2f} s" for s in seconds))
        for lane, jobs, succeeded, *seconds in conn.execute(LANES_QUERY, [since])
    ]
    numbers = ("jobs", "succeeded", "wait mean", "wait max", "run mean", "run max")
    columns = ("lane", *(f"#{name}" for name in numbers))
    print_table(console, "Jobs of this run, per lane", columns, rows)
