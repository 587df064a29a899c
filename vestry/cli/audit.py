"""`vestry audit report`: what left for a cloud."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from vestry.admin import audit
from vestry.admin.audit import AuditReport
from vestry.cli.connections import operator
from vestry.cli.errors import ExitCode
from vestry.cli.options import JsonOption
from vestry.cli.output import Output, table

FORMATS = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    group = typer.Typer(help="Report what left for a cloud.", no_args_is_help=True)
    group.callback()(_group)
    group.command("report")(report)
    app.add_typer(group, name="audit", rich_help_panel="Operate")


def _group() -> None:
    """Report what left for a cloud."""


def report(
    since: Annotated[
        dt.datetime, typer.Option("--since", formats=FORMATS, help="From this day on (UTC).")
    ],
    until: Annotated[
        dt.datetime | None,
        typer.Option("--until", formats=FORMATS, help="Up to this day (UTC); by default now."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what left for a cloud, by day, class and backend, and that nothing private did.

    Every request is on record before its first byte leaves, and the record takes none for a private
    job. Exit code 1 where the record and the attempts' receipts do not agree.
    """
    begin = since.replace(tzinfo=dt.UTC)
    end = dt.datetime.now(dt.UTC) if until is None else until.replace(tzinfo=dt.UTC)
    with operator() as conn:
        found = audit.report(conn, begin, end)
    Output(as_json=as_json).emit(_document(found), lambda console: _show(console, found))
    if not found.clean:
        raise typer.Exit(ExitCode.FAILED)


def _document(found: AuditReport) -> dict[str, Any]:
    totals = {
        privacy: {
            "requests": sum(d.requests for d in found.egress if d.privacy == privacy),
            "bytes": sum(d.bytes for d in found.egress if d.privacy == privacy),
        }
        for privacy in ("private", "shareable")
    }
    return {
        "since": found.since.isoformat(),
        "until": found.until.isoformat(),
        "clean": found.clean,
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
            for d in found.egress
        ],
        "private_receipts": found.private_receipts,
        "unrecorded": found.unrecorded,
        "guarded": found.guarded,
    }


def _show(console: Console, found: AuditReport) -> None:
    if found.egress:
        rows = (
            (d.day.isoformat(), d.privacy, d.backend, d.requests, d.jobs, d.bytes)
            for d in found.egress
        )
        console.print(table(("day", "class", "backend", "#requests", "#jobs", "#bytes"), rows))
        console.print()
    span = f"From {found.since:%Y-%m-%d %H:%M} to {found.until:%Y-%m-%d %H:%M} UTC"
    console.print(Text(f"{span}, {found.private_requests} requests were made for private jobs."))
    for trouble, text in (
        (found.private_receipts, "attempts of private jobs say that a cloud served them"),
        (found.unrecorded, "attempts say that a cloud served them, and no request is on record"),
        (not found.guarded, "the record's own constraints or grants were changed"),
    ):
        if trouble:
            count = "" if trouble is True else f"{trouble} "
            console.print(Text(f"NOT CLEAN: {count}{text}.", style="bold red"))
