"""Where a command writes: one JSON document or tidy tables on stdout, everything else on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vestry.cli.errors import Failure

PIPE_WIDTH = 140
"""Columns of a table that is not printed to a terminal."""


class Output:
    """One command's output.

    Args:
        as_json: write the one JSON document instead of the tables.
    """

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        # Nobody folds what goes into a file or a pipe: tables get room there.
        tty = sys.stdout.isatty()
        self.console = Console(
            highlight=False, soft_wrap=not tty, width=None if tty else PIPE_WIDTH
        )
        self.notes = Console(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())

    def emit(self, document: Mapping[str, Any], human: Callable[[Console], None]) -> None:
        """Write the command's answer, once.

        Args:
            document: what `--json` prints.
            human: prints the same for a person.
        """
        if self.as_json:
            escape = "utf" not in (sys.stdout.encoding or "").lower()
            sys.stdout.write(json.dumps(document, ensure_ascii=escape, default=str) + "\n")
            sys.stdout.flush()
        else:
            human(self.console)

    def note(self, message: str, style: str = "") -> None:
        """Tell the person something, on stderr."""
        self.notes.print(Text(message, style=style))

    def fail(self, failure: Failure) -> None:
        """Write an error."""
        if self.as_json:
            self.emit(failure.document(), lambda _: None)
        else:
            self.notes.print(Text.assemble(("Error: ", "bold red"), failure.message))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "") -> Table:
    """A table whose columns of numbers stand to the right.

    Args:
        columns: the headings; one that begins with `#` is a column of numbers.
        rows: cells are printed as they are: markup in them means nothing.
        title: printed above.
    """
    made = Table(
        title=title or None,
        box=None,
        pad_edge=False,
        title_justify="left",
        show_header=any(columns),
    )
    for name in columns:
        right = name.startswith("#")
        made.add_column(name.lstrip("#"), justify="right" if right else "left", overflow="fold")
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else Text(show(cell)) for cell in row))
    return made


def show(value: object) -> str:
    """A cell's text: a dash for nothing, short numbers."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1 else f"{value:,.1f}"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)


def duration(seconds: float | None) -> str:
    """`40 ms`, `1.4 s`, `12 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 10:  # noqa: PLR2004 - below, a tenth still tells
        return f"{seconds:.1f} s"
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
