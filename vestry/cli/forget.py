"""`vestry forget OWNER`."""

from __future__ import annotations

import datetime as dt
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from vestry.admin import erasure
from vestry.cli.connections import operator
from vestry.cli.options import JsonOption
from vestry.cli.output import Output, table

DAYS_ENVIRONMENT = "VESTRY_BACKUP_DAYS"

NAMES = {
    "keys": "data keys",
    "documents": "documents",
    "chunks": "chunks",
    "vectors": "vectors",
    "payloads": "payloads",
    "results": "results",
    "files": "parts of files",
    "idempotency_keys": "idempotency keys",
}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("forget", rich_help_panel="Operate")(forget)


def forget(
    owner: Annotated[str, typer.Argument(metavar="OWNER", help="Whose everything is to go.")],
    timeout: Annotated[
        float,
        typer.Option(
            "--timeout", min=0, max=86_400, help="Seconds to wait for producers' open transactions."
        ),
    ] = 30.0,
    backup_days: Annotated[
        float | None,
        typer.Option(
            "--backup-days", min=0, max=36_500, envvar=DAYS_ENVIRONMENT,
            help="How many days your backups of the database are kept.",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Delete everything of an owner's, for good, and take nothing for them any more.

    The data key goes first: with it all that is sealed. Jobs are cancelled, running ones too; rows,
    files, vectors and results are deleted. Broken off, the same command takes it up again.
    """
    if not (yes or as_json) and sys.stdin.isatty():
        typer.confirm(f"Delete everything of {owner}, for good?", abort=True)
    with operator() as conn:
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
    Output(as_json=as_json).emit(document, lambda console: _show(console, done, until))


def _show(console: Console, done: erasure.ErasureReport, until: dt.datetime | None) -> None:
    rows = [(NAMES[what], count) for what, count in done.gone.items()]
    console.print(table(("gone", "#"), [("jobs cancelled", done.cancelled), *rows]))
    when = (
        f"until {until:%Y-%m-%d}, when the last of them is gone"
        if until
        else f"for as long as you keep them (tell with --backup-days or {DAYS_ENVIRONMENT})"
    )
    console.print(
        Text(
            f"\nStill here: {done.kept_jobs} job records without content, until they are pruned, "
            f"and the tombstone.\nBackups from before {done.forgotten_at:%Y-%m-%d %H:%M} UTC still "
            f"hold the owner's rows {when}. What is sealed in them opens with the key ring of that "
            "time alone: `vestry keys rotate`, then `vestry keys retire`, and no copy of the old "
            "ring, make it unreadable now."
        )
    )
