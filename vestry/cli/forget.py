"""`vestry forget`: delete everything of an owner, and report what backups still hold."""

from __future__ import annotations

import datetime as dt
import sys
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.text import Text

from vestry.admin import erasure
from vestry.cli.connections import operator_connection
from vestry.cli.options import JsonOption
from vestry.cli.output import Output, table

BACKUP_DAYS_VARIABLE: Final = "VESTRY_BACKUP_DAYS"

COUNT_NAMES: Final = {
    "keys": "data keys",
    "documents": "documents",
    "chunks": "chunks",
    "vectors": "vectors",
    "payloads": "payloads",
    "results": "results",
    "files": "parts of files",
    "idempotency_keys": "idempotency keys",
}
"""Names of the report's counts in the printed table."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("forget", rich_help_panel="Operate")(forget)


def forget(
    owner: Annotated[str, typer.Argument(metavar="OWNER", help="The owner to delete.")],
    timeout: Annotated[
        float,
        typer.Option(
            "--timeout", min=0, max=86_400,
            help="Most seconds to wait for producers' open transactions.",
        ),
    ] = 30.0,
    backup_days: Annotated[
        float | None,
        typer.Option(
            "--backup-days", min=0, max=36_500, envvar=BACKUP_DAYS_VARIABLE,
            help="Days for which you keep backups of the database.",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Delete everything of an owner permanently, and refuse new jobs and documents for that owner.

    The data key is deleted first: sealed content is then unreadable. Queued and running jobs are
    cancelled; rows, files, vectors and results are deleted. If it is interrupted, run it again to
    continue.
    """
    if not (yes or as_json) and sys.stdin.isatty():
        typer.confirm(f"Delete everything of {owner} permanently?", abort=True)
    with operator_connection() as conn:
        done = erasure.forget(conn, owner, timeout_s=timeout)
    until = erasure.backups_until(backup_days, done.forgotten_at)
    document = {
        "owner": owner,
        "forgotten_at": done.forgotten_at.isoformat(),
        "cancelled": done.cancelled,
        "gone": done.gone,
        "kept": {"jobs": done.kept_jobs},
        "backups": {
            "before": done.forgotten_at.isoformat(),
            "hold": ["sealed rows", "the wrapped data key", "shareable content in the clear"],
            "until": until and until.isoformat(),
        },
    }
    Output(as_json=as_json).emit(document, lambda console: _print_report(console, done, until))


def _print_report(console: Console, done: erasure.ErasureReport, until: dt.datetime | None) -> None:
    rows = [(COUNT_NAMES[name], count) for name, count in done.gone.items()]
    console.print(table(("deleted", "#"), [("jobs cancelled", done.cancelled), *rows]))
    how_long = (
        f"until the last of them is deleted on {until:%Y-%m-%d}"
        if until
        else f"for as long as you keep them (set --backup-days or {BACKUP_DAYS_VARIABLE})"
    )
    console.print(
        Text(
            f"\nKept: {done.kept_jobs} job records without content, until they are pruned, and the "
            f"tombstone.\nBackups from before {done.forgotten_at:%Y-%m-%d %H:%M} UTC hold the owner's "
            f"rows {how_long}. Sealed content in them can be read only with the key ring of that "
            "time. To make it unreadable now, run `vestry keys rotate`, then `vestry keys retire`, "
            "and delete every copy of the old key ring."
        )
    )
