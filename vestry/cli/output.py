"""Output of a command: one JSON document or tables on stdout, notes and errors on stderr."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vestry.cli.errors import Failure

PIPE_WIDTH = 140
"""Columns of a table that is printed to a file or a pipe."""

BIDI_CONTROLS = frozenset(map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A))))
"""Unicode's bidirectional embeddings, overrides and isolates: they reorder the text after them."""


class Output:
    """One command's output.

    Args:
        as_json: write the one JSON document instead of the tables.
    """

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        tty = sys.stdout.isatty()
        self.console = Console(
            highlight=False, soft_wrap=not tty, width=None if tty else PIPE_WIDTH
        )
        self.notes = Console(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())

    def emit(self, document: Mapping[str, Any], print_text: Callable[[Console], None]) -> None:
        """Write the command's result. Called once.

        Args:
            document: the JSON document, printed with `--json`.
            print_text: prints the same as text.
        """
        if self.as_json:
            escape = "utf" not in (sys.stdout.encoding or "").lower()
            sys.stdout.write(json.dumps(document, ensure_ascii=escape, default=str) + "\n")
            sys.stdout.flush()
        else:
            print_text(self.console)

    def note(self, message: str, style: str = "") -> None:
        """Print a message on stderr."""
        self.notes.print(Text(message, style=style))

    def fail(self, failure: Failure) -> None:
        """Print an error: as JSON on stdout, or as text on stderr."""
        if self.as_json:
            self.emit(failure.document(), lambda _: None)
        else:
            self.notes.print(Text.assemble(("Error: ", "bold red"), failure.message))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "") -> Table:
    """Build a table; columns of numbers are right-aligned.

    Args:
        columns: the headings; one that begins with `#` is a column of numbers.
        rows: the cells; markup in them is printed literally.
        title: printed above.
    """
    built = Table(
        title=title or None,
        box=None,
        pad_edge=False,
        title_justify="left",
        show_header=any(columns),
    )
    for name in columns:
        right = name.startswith("#")
        built.add_column(name.lstrip("#"), justify="right" if right else "left", overflow="fold")
    for row in rows:
        built.add_row(*(c if isinstance(c, Text) else Text(_format_cell(c)) for c in row))
    return built


def _format_cell(value: object) -> str:
    """A cell's text: a dash for None, numbers shortened."""
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
    if seconds < 10:  # noqa: PLR2004 - tenths from 10 s on would only be noise
        return f"{seconds:.1f} s"
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def printable(text: str) -> str:
    """Text with control characters blanked: a document must not steer the terminal or reorder lines.

    The joiners (U+200C, U+200D) stay: scripts and emoji need them.
    """
    return "".join(
        " "
        if unicodedata.category(character) in {"Cc", "Cs"} or character in BIDI_CONTROLS
        else character
        for character in text
    )
