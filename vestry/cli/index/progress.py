"""Progress of an index run on stderr: a bar on a terminal, otherwise a line every few seconds."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Final, Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from vestry.cli.output import duration

LINE_INTERVAL_S: Final = 5.0
"""Seconds between two progress lines where there is no terminal."""


class ProgressMeter(Protocol):
    """Shows the number of finished documents; a context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None: ...

    def show(self, done: int, total: int | None, doing: str = "") -> None:
        """Show `done` documents, of `total` if that is known."""
        ...


def progress_meter(console: Console) -> ProgressMeter:
    """A bar on a terminal, else lines."""
    return BarMeter(console) if console.is_terminal else LineMeter(console)


class BarMeter:
    """A bar with count, rate and remaining time."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            _RateColumn(),
            console=console,
            expand=True,
            refresh_per_second=4,
            speed_estimate_period=60,
        )
        self._task = self._progress.add_task("indexing", total=None)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def show(self, done: int, total: int | None, doing: str = "") -> None:
        """Show `done` documents, of `total` if that is known."""
        self._progress.update(
            self._task, completed=done, total=total, description=doing or "indexing"
        )


class _RateColumn(ProgressColumn):
    """Documents per second over the last minute, and the remaining time at that rate."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        if task.finished:
            return Text(f"{duration(task.elapsed)} in all")
        return Text(format_rate(task.speed, None if task.total is None else task.remaining))


class LineMeter:
    """A line every LINE_INTERVAL_S, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started = time.monotonic()
        self._last_line = self._started

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def show(self, done: int, total: int | None, doing: str = "") -> None:
        """Show `done` documents, of `total` if that is known."""
        now = time.monotonic()
        complete = total is not None and done >= total
        if now - self._last_line < LINE_INTERVAL_S and not complete:
            return
        self._last_line = now
        elapsed = now - self._started
        rate = done / elapsed if done else None
        share = f" of {total} ({100 * done // total} %)" if total else ""
        tail = f"in {duration(elapsed)}" if complete else format_rate(rate, (total or 0) - done)
        self._console.print(Text(f"{doing or 'indexing'}: {done}{share}, {tail}"))


def format_rate(rate: float | None, remaining: float | None) -> str:
    """`12.3/s, 2 min 05 s left`, without the parts that are unknown.

    Args:
        rate: documents per second; None if unknown.
        remaining: documents; None if unknown.
    """
    if not rate:
        return "rate not known yet"
    if remaining is None or remaining <= 0:
        return f"{rate:.1f}/s"
    return f"{rate:.1f}/s, {duration(remaining / rate)} left"
