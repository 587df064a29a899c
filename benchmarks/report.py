"""Figures, how they are printed and where they are kept."""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.confusion import Confusion

PACKAGES = (
    "celery",
    "kombu",
    "redis",
    "psycopg",
    "torch",
    "sentence-transformers",
    "py3langid",
    "xllamacpp",
)


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number.

    Attributes:
        name: what was measured.
        value: the number.
        unit: of the number; empty for a ratio.
        at_least: the aim, where more is better.
        at_most: the aim, where less is better.
        note: what the number was made of.
    """

    name: str
    value: float
    unit: str = ""
    at_least: float | None = None
    at_most: float | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the aim is met; None where there is none."""
        if self.at_least is not None:
            return self.value >= self.at_least
        if self.at_most is not None:
            return self.value <= self.at_most
        return None


@dataclass(slots=True)
class Outcome:
    """What one benchmark found: its figures, and the single rounds for whoever doubts them."""

    title: str
    figures: list[Figure] = field(default_factory=list)
    rounds: dict[str, list[float]] = field(default_factory=dict)
    confusions: list[Confusion] = field(default_factory=list)

    def add(self, name: str, value: float, unit: str = "", **aim: Any) -> None:
        """Add a figure; `aim` is its other fields."""
        self.figures.append(Figure(name, value, unit, **aim))


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` (0 to 1) of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median of the rounds' own ratios, so that a machine growing slower does not count."""
    return median(a / b for a, b in zip(ours, theirs, strict=True))


def show(outcome: Outcome, console: Console) -> None:
    """Print one benchmark's figures as a table."""
    table = Table(title=outcome.title, title_justify="left", title_style="bold")
    table.add_column("measured")
    table.add_column("", justify="right")
    table.add_column("aim", justify="right")
    table.add_column("how", overflow="fold")
    for figure in outcome.figures:
        aim = ""
        if figure.met is not None:
            bound = figure.at_least if figure.at_least is not None else figure.at_most
            sign = "≥" if figure.at_least is not None else "≤"
            aim = f"{'[green]' if figure.met else '[red]'}{sign} {bound:g}[/]"
        value = f"{readable(figure.value)}{' ' + figure.unit if figure.unit else ''}"
        table.add_row(figure.name, value, aim, figure.note)
    console.print(table)
    for confusion in outcome.confusions:
        console.print(confusion.table())


def readable(value: float) -> str:
    """Three significant digits, and no fewer than the whole number has."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def save(path: Path, outcomes: Mapping[str, Outcome]) -> None:
    """Write all figures and rounds as one JSON document, with what they were measured on."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    document = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": {
            "system": platform.system(),
            "architecture": platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "load": list(os.getloadavg()),
        },
        "packages": {name: version(name) for name in PACKAGES},
        "benchmarks": {
            name: {
                "title": outcome.title,
                "figures": [{**asdict(f), "met": f.met} for f in outcome.figures],
                "rounds": outcome.rounds,
                "confusions": [confusion.document() for confusion in outcome.confusions],
            }
            for name, outcome in outcomes.items()
        },
    }
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
