"""How results of classification and reranking are shown to a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from rich.console import Console
from rich.text import Text

from vestry.cli.output import table
from vestry.cli.search import printable

OTHERS_SHOWN: Final = 5
"""Labels that were not given, the likeliest first."""


def show_classification(console: Console, result: Mapping[str, Any]) -> None:
    """The labels that were given, and dimly what else was likely."""
    given = [str(row["label"]) for row in result["labels"]]
    if result["abstained"]:
        console.print(Text("no label: none reached the threshold", style="yellow"))
    others = [row for row in result.get("scores", ()) if row["label"] not in given]
    rows = [
        *((_label(row, "bold green"), row["score"]) for row in result["labels"]),
        *((_label(row, "dim"), row["score"]) for row in others[:OTHERS_SHOWN]),
    ]
    if rows:
        console.print(table(("label", "#score"), rows))
    if result.get("normalised"):
        console.print(Text(f"usual form: {printable(result['normalised'])}"))


def show_rerank(console: Console, result: Mapping[str, Any]) -> None:
    """Places in the job's list, from 0, best first."""
    rows = [
        (rank, row["index"], f"{row['score']:.4f}") for rank, row in enumerate(result["ranking"], 1)
    ]
    console.print(table(("#", "#passage", "#score"), rows))


def _label(row: Mapping[str, Any], style: str) -> Text:
    return Text(printable(str(row["label"])), style=style)
