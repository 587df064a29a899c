"""`vestry receipts`: which model served each attempt of a job, and why that one."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from vestry.cli.connections import open_client
from vestry.cli.options import JsonOption
from vestry.cli.output import Output, duration, table
from vestry.db.receipts import Receipt


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("receipts", rich_help_panel="Jobs")(receipts)


def receipts(
    job: Annotated[str, typer.Argument(metavar="JOB", help="The job's id.")],
    as_json: JsonOption = False,
) -> None:
    """Show which model served each attempt of a job, where, at what price, and why that one."""
    with open_client() as vestry:
        found = vestry.receipts(job)
    document = {"job": job, "receipts": [receipt_document(receipt) for receipt in found]}
    Output(as_json=as_json).emit(document, lambda console: show_receipts(console, found))


def show_receipts(console: Console, found: list[Receipt]) -> None:
    """A table, one line an attempt."""
    if not found:
        console.print("No attempt yet.")
        return
    rows = (
        (
            receipt.attempt,
            receipt.outcome,
            _name(receipt.intended.backend, receipt.intended.model),
            _name(receipt.served.backend, receipt.served.model),
            receipt.locality,
            Text("degraded", style="yellow") if receipt.degraded else "",
            receipt.reason,
            receipt.input_tokens,
            receipt.output_tokens,
            None if receipt.cost is None else f"${receipt.cost:.6f}",
            _took(receipt),
        )
        for receipt in found
    )
    columns = (
        "#attempt", "outcome", "intended", "served by", "where", "", "reason", "#tokens in",
        "#tokens out", "#cost", "#took",
    )  # fmt: skip
    console.print(table(columns, rows))


def _name(backend: str | None, model: str | None) -> str | None:
    return None if model is None else f"{model} on {backend}"


def _took(receipt: Receipt) -> str:
    if receipt.started_at is None:
        return "-"
    return duration(max(0.0, (receipt.finished_at - receipt.started_at).total_seconds()))


def receipt_document(receipt: Receipt) -> dict[str, Any]:
    """A receipt as `--json` prints it."""
    return {
        "attempt": receipt.attempt,
        "outcome": receipt.outcome,
        "intended": {"backend": receipt.intended.backend, "model": receipt.intended.model},
        "served": {"backend": receipt.served.backend, "model": receipt.served.model},
        "locality": receipt.locality,
        "degraded": receipt.degraded,
        "reason": receipt.reason,
        "policy": receipt.policy,
        "usage": {"input_tokens": receipt.input_tokens, "output_tokens": receipt.output_tokens},
        "cost": None if receipt.cost is None else str(receipt.cost),
        "started_at": receipt.started_at and receipt.started_at.isoformat(),
        "finished_at": receipt.finished_at.isoformat(),
    }
