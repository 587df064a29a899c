"""How far an index is, on stderr: a bar with rate and time left, or a plain line now and then."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from vestry.cli.output import duration

LINE_EVERY_S = 5.0
"""Between two plain lines, where there is no terminal to draw a bar on."""


class Meter(Protocol):
    """Shows how many documents are done; a context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None: ...

    def show(self, done: int, total: int | None, doing: str = "") -> None:
        """Documents done, of `total` where it is known."""
        ...


def meter(console: Console) -> Meter:
    """The kind of meter that the console can show."""
    return BarMeter(console) if console.is_terminal else LineMeter(console)


class BarMeter:
    """A bar with count, rate and time left."""

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
        """Documents done, of `total` where it is known."""
        self._progress.update(
            self._task, completed=done, total=total, description=doing or "indexing"
        )


class _RateColumn(ProgressColumn):
    """Documents a second over the last minute, and the time left at that rate."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        if task.finished:
            return Text(f"{duration(task.elapsed)} in all")
        return Text(pace(task.speed, None if task.total is None else task.remaining))


class LineMeter:
    """A line every few seconds, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self._last = self._began

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
        """Documents done, of `total` where it is known."""
        now = time.monotonic()
        complete = total is not None and done >= total
        if now - self._last < LINE_EVERY_S and not complete:
            return
        self._last = now
        rate = done / (now - self._began) if done else None
        share = f" of {total} ({100 * done // total} %)" if total else ""
        tail = f"in {duration(now - self._began)}" if complete else pace(rate, (total or 0) - done)
        self._console.print(Text(f"{doing or 'indexing'}: {done}{share}, {tail}"))


def pace(rate: float | None, remaining: float | None) -> str:
    """`12.3/s, 2 min 05 s left`, as far as it is known."""
    if not rate:
        return "rate not known yet"
    if remaining is None or remaining <= 0:
        return f"{rate:.1f}/s"
    return f"{rate:.1f}/s, {duration(remaining / rate)} left"
