"""What was taken for what: right labels against given ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

NONE = "none"
"""Given where a model abstained or failed."""


@dataclass(slots=True)
class Confusion:
    """Counts of pairs of a right and a given label."""

    title: str
    labels: Sequence[str]
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, right: str, given: str | None) -> None:
        """Note one text."""
        self.counts[right, given or NONE] += 1

    @property
    def accuracy(self) -> float:
        """Share of right ones among all."""
        total = sum(self.counts.values())
        return sum(self.counts[label, label] for label in self.labels) / total

    def rows(self) -> list[list[str]]:
        """A row for each right label: its name and how often each label was given for it."""
        return [
            [right, *(str(self.counts[right, given] or "·") for given in self._given)]
            for right in self.labels
        ]

    @property
    def heads(self) -> list[str]:
        """What stands above the rows."""
        return ["right \\ given", *self._given]

    def markdown(self) -> str:
        """As a table of Markdown."""
        lines = [self.heads, ["---", *["---:"] * len(self._given)], *self.rows()]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)

    def table(self) -> Table:
        """As a table of the console."""
        made = Table(*self.heads, title=self.title, title_justify="left")
        for row in self.rows():
            made.add_row(*row)
        return made

    def document(self) -> dict[str, Any]:
        """As JSON, with the Markdown for the documents."""
        return {"title": self.title, "accuracy": self.accuracy, "markdown": self.markdown()}

    @property
    def _given(self) -> list[str]:
        some = any(given == NONE for _, given in self.counts)
        return [*self.labels, *([NONE] if some else [])]
