"""What was read from a file, as a person is shown it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from vestry.cli.output import table
from vestry.cli.search import printable
from vestry.jobs.ocr import OcrPage, OcrResult

COLUMNS = ("#page", "read from", "#confidence", "#words", "turned", "error")


def show_ocr(console: Console, result: Mapping[str, Any]) -> None:
    """The text; before it a line for each page, unless there is one page and nothing to say of it.

    Args:
        console: where to.
        result: the job's, as JSON.
    """
    read = OcrResult.from_json(result)
    if len(read.pages) > 1 or any(page.error for page in read.pages):
        console.print(table(COLUMNS, map(_row, read.pages)))
        failed = sum(page.error is not None for page in read.pages)
        if failed:
            told = f"{failed} of {len(read.pages)} pages could not be read."
            console.print(Text(told, style="yellow"))
        console.print()
    elif read.pages:
        page = read.pages[0]
        sure = "" if page.confidence is None else f", confidence {page.confidence:.0%}"
        console.print(Text(f"{_source(page)}{sure}{_turned(page, ', turned ')}", style="dim"))
    if read.text:
        console.print(Text("\n".join(map(printable, read.text.splitlines()))), soft_wrap=True)
    else:
        console.print(Text("There is no text on it.", style="dim"))


def _row(page: OcrPage) -> tuple[object, ...]:
    if page.error is not None:
        return page.page, None, None, None, None, Text(page.error[1], style="red")
    sure = None if page.confidence is None else f"{page.confidence:.0%}"
    return page.page, _source(page), sure, len(page.text.split()), _turned(page) or None, None


def _source(page: OcrPage) -> str:
    return "text layer" if page.source == "text-layer" else "image"


def _turned(page: OcrPage, before: str = "") -> str:
    turn = page.rotation + page.skew
    return f"{before}{turn:g}°" if turn else ""
