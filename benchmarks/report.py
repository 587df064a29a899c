"""Figures of a benchmark: statistics, printed tables, and the JSON file."""

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

from benchmarks.confusion import ConfusionMatrix

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
        name: the measured quantity.
        value: the number.
        unit: unit of the number; empty for a ratio.
        at_least: the aim, if more is better.
        at_most: the aim, if less is better.
        note: how the number was measured.
    """

    name: str
    value: float
    unit: str = ""
    at_least: float | None = None
    at_most: float | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the aim is met; None without an aim."""
        if self.at_least is not None:
            return self.value >= self.at_least
        if self.at_most is not None:
            return self.value <= self.at_most
        return None


@dataclass(slots=True)
class BenchmarkResult:
    """Result of one benchmark: its figures, and the rounds from which they are computed."""

    title: str
    figures: list[Figure] = field(default_factory=list)
    rounds: dict[str, list[float]] = field(default_factory=dict)
    confusion_matrices: list[ConfusionMatrix] = field(default_factory=list)

    def add(self, name: str, value: float, unit: str = "", **fields: Any) -> None:
        """Add a figure; `fields` are its other fields."""
        self.figures.append(Figure(name, value, unit, **fields))


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` (0 to 1) of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def median_ratio(values: Sequence[float], peer_values: Sequence[float]) -> float:
    """Median of the ratios per round: a slowdown of the machine affects both sides of a round."""
    return median(a / b for a, b in zip(values, peer_values, strict=True))


def show(result: BenchmarkResult, console: Console) -> None:
    """Print one benchmark's figures as a table."""
    table = Table(title=result.title, title_justify="left", title_style="bold")
    table.add_column("measured")
    table.add_column("", justify="right")
    table.add_column("aim", justify="right")
    table.add_column("how", overflow="fold")
    for figure in result.figures:
        aim = ""
        if figure.met is not None:
            bound = figure.at_least if figure.at_least is not None else figure.at_most
            sign = "≥" if figure.at_least is not None else "≤"
            aim = f"{'[green]' if figure.met else '[red]'}{sign} {bound:g}[/]"
        value = f"{readable(figure.value)}{' ' + figure.unit if figure.unit else ''}"
        table.add_row(figure.name, value, aim, figure.note)
    console.print(table)
    for confusion in result.confusion_matrices:
        console.print(confusion.table())


def readable(value: float) -> str:
    """Format with three significant digits, and every digit before the decimal point."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def save(path: Path, results: Mapping[str, BenchmarkResult]) -> None:
    """Write all figures and rounds as one JSON document, with the machine and package versions."""
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
                "title": result.title,
                "figures": [{**asdict(f), "met": f.met} for f in result.figures],
                "rounds": result.rounds,
                "confusions": [confusion.document() for confusion in result.confusion_matrices],
            }
            for name, result in results.items()
        },
    }
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
