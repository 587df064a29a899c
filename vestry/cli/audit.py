"""`vestry audit report`: requests that were sent to clouds."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.text import Text

from vestry.admin import audit
from vestry.admin.audit import AuditReport
from vestry.cli.connections import operator_connection
from vestry.cli.errors import ExitCode
from vestry.cli.options import JsonOption
from vestry.cli.output import Output, table

FORMATS: Final = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]
"""Formats of --since and --until."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    group = typer.Typer(help="Report the requests sent to clouds.", no_args_is_help=True)
    group.callback()(_group)
    group.command("report")(report)
    app.add_typer(group, name="audit", rich_help_panel="Operate")


def _group() -> None:
    """Report the requests sent to clouds."""


def report(
    since: Annotated[
        dt.datetime, typer.Option("--since", formats=FORMATS, help="First day (UTC).")
    ],
    until: Annotated[
        dt.datetime | None,
        typer.Option(
            "--until", formats=FORMATS, help="Day before which to end (UTC). Default: now."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Report the requests sent to clouds by day, privacy and backend, and check that none was private.

    Each request is recorded before its first byte is sent, and the record refuses private jobs. Exit
    code 1 if the record contradicts the attempts' receipts.
    """
    begin = since.replace(tzinfo=dt.UTC)
    end = dt.datetime.now(dt.UTC) if until is None else until.replace(tzinfo=dt.UTC)
    with operator_connection() as conn:
        result = audit.report(conn, begin, end)
    Output(as_json=as_json).emit(_document(result), lambda console: _print_report(console, result))
    if not result.clean:
        raise typer.Exit(ExitCode.FAILED)


def _document(result: AuditReport) -> dict[str, Any]:
    totals = {
        privacy: {
            "requests": sum(d.requests for d in result.egress if d.privacy == privacy),
            "bytes": sum(d.bytes for d in result.egress if d.privacy == privacy),
        }
        for privacy in ("private", "shareable")
    }
    return {
        "since": result.since.isoformat(),
        "until": result.until.isoformat(),
        "clean": result.clean,
        "totals": totals,
        "egress": [
            {
                "day": d.day.isoformat(),
                "privacy": d.privacy,
                "backend": d.backend,
                "locality": d.locality,
                "requests": d.requests,
                "jobs": d.jobs,
                "bytes": d.bytes,
            }
            for d in result.egress
        ],
        "private_receipts": result.private_receipts,
        "unrecorded": result.unrecorded,
        "guarded": result.guarded,
    }


def _print_report(console: Console, result: AuditReport) -> None:
    if result.egress:
        rows = (
            (d.day.isoformat(), d.privacy, d.backend, d.requests, d.jobs, d.bytes)
            for d in result.egress
        )
        console.print(table(("day", "privacy", "backend", "#requests", "#jobs", "#bytes"), rows))
        console.print()
    span = f"From {result.since:%Y-%m-%d %H:%M} to {result.until:%Y-%m-%d %H:%M} UTC"
    console.print(Text(f"{span}, {result.private_requests} requests were made for private jobs."))
    for violation, text in (
        (result.private_receipts, "receipts of private jobs name a cloud backend"),
        (result.unrecorded, "receipts name a cloud backend for which no request is recorded"),
        (not result.guarded, "the record's own constraints or grants were changed"),
    ):
        if violation:
            count = "" if violation is True else f"{violation} "
            console.print(Text(f"NOT CLEAN: {count}{text}.", style="bold red"))
