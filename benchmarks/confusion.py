"""Confusion matrix of a classification: true labels against predicted ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

NONE = "none"
"""Predicted label if a model abstained or named no label."""


@dataclass(slots=True)
class ConfusionMatrix:
    """Counts of pairs of a true and a predicted label."""

    title: str
    labels: Sequence[str]
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, true: str, predicted: str | None) -> None:
        """Count one text."""
        self.counts[true, predicted or NONE] += 1

    @property
    def accuracy(self) -> float:
        """Share of correctly labelled texts, 0 to 1."""
        total = sum(self.counts.values())
        return sum(self.counts[label, label] for label in self.labels) / total

    def rows(self) -> list[list[str]]:
        """A row for each true label: its name, and the count of each predicted label."""
        return [
            [true, *(str(self.counts[true, predicted] or "·") for predicted in self._columns)]
            for true in self.labels
        ]

    @property
    def headings(self) -> list[str]:
        """Headings of the columns."""
        return ["true \\ predicted", *self._columns]

    def markdown(self) -> str:
        """The matrix as a Markdown table."""
        lines = [self.headings, ["---", *["---:"] * len(self._columns)], *self.rows()]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)

    def table(self) -> Table:
        """The matrix as a table for the console."""
        table = Table(*self.headings, title=self.title, title_justify="left")
        for row in self.rows():
            table.add_row(*row)
        return table

    def document(self) -> dict[str, Any]:
        """The matrix as JSON, with Markdown for the documentation."""
        return {"title": self.title, "accuracy": self.accuracy, "markdown": self.markdown()}

    @property
    def _columns(self) -> list[str]:
        """Predicted labels, with NONE if it occurs."""
        abstained = any(predicted == NONE for _, predicted in self.counts)
        return [*self.labels, *([NONE] if abstained else [])]
