"""`vestry receipts`: the model that served each attempt of a job, and why it was chosen."""

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
    """Show which model served each attempt of a job, where, at what cost, and why it was chosen."""
    with open_client() as vestry:
        attempts = vestry.receipts(job)
    document = {"job": job, "receipts": [receipt_document(receipt) for receipt in attempts]}
    Output(as_json=as_json).emit(document, lambda console: print_receipts(console, attempts))


def print_receipts(console: Console, attempts: list[Receipt]) -> None:
    """Print a table with one row per attempt."""
    if not attempts:
        console.print("No attempt yet.")
        return
    rows = (
        (
            receipt.attempt,
            receipt.outcome,
            _model_name(receipt.intended.backend, receipt.intended.model),
            _model_name(receipt.served.backend, receipt.served.model),
            receipt.locality,
            Text("degraded", style="yellow") if receipt.degraded else "",
            receipt.reason,
            receipt.input_tokens,
            receipt.output_tokens,
            None if receipt.cost is None else f"${receipt.cost:.6f}",
            _run_time(receipt),
        )
        for receipt in attempts
    )
    columns = (
        "#attempt", "outcome", "intended", "served by", "where", "", "reason", "#tokens in",
        "#tokens out", "#cost", "#run time",
    )  # fmt: skip
    console.print(table(columns, rows))


def _model_name(backend: str | None, model: str | None) -> str | None:
    return None if model is None else f"{model} on {backend}"


def _run_time(receipt: Receipt) -> str:
    if receipt.started_at is None:
        return "-"
    return duration(max(0.0, (receipt.finished_at - receipt.started_at).total_seconds()))


def receipt_document(receipt: Receipt) -> dict[str, Any]:
    """JSON document of a receipt."""
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
