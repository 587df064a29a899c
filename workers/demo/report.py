"""How the outcome is printed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import psycopg
from rich.console import Console
from rich.table import Table

PATIENCE_S = 300.0
"""For one job; a slow machine takes a minute for all of them."""

LANES_SINCE = """
SELECT lane, count(*), count(*) FILTER (WHERE state = 'succeeded'),
       avg(extract(epoch FROM started_at - created_at))::float8,
       max(extract(epoch FROM started_at - created_at))::float8,
       avg(extract(epoch FROM finished_at - started_at))::float8,
       max(extract(epoch FROM finished_at - started_at))::float8
FROM vestry.jobs WHERE created_at >= %s GROUP BY lane ORDER BY lane"""


def tabulate(
    console: Console,
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    lines: bool = False,
) -> None:
    """Print a table after an empty line; columns that begin with `#` stand to the right."""
    table = Table(title=title, title_justify="left", show_lines=lines)
    for name in columns:
        table.add_column(name.lstrip("#"), justify="right" if name.startswith("#") else "left")
    for row in rows:
        table.add_row(*("-" if cell is None else str(cell) for cell in row))
    console.print()
    console.print(table)


def show_lanes(conn: psycopg.Connection, since: object, console: Console) -> None:
    """Jobs enqueued since then, per lane, with their waiting and running times."""
    rows = [
        (lane, jobs, succeeded, *("-" if s is None else f"{s:.2f} s" for s in seconds))
        for lane, jobs, succeeded, *seconds in conn.execute(LANES_SINCE, [since])
    ]
    numbers = ("jobs", "succeeded", "wait mean", "wait max", "run mean", "run max")
    columns = ("lane", *(f"#{name}" for name in numbers))
    tabulate(console, "Jobs of this run, per lane", columns, rows)
