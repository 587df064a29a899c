"""`vestry doctor`: what is installed, reachable, mismatched."""

from __future__ import annotations

import typer
from rich.console import Console
from rich.text import Text

from vestry.cli.doctor.checks import all_checks
from vestry.cli.errors import ExitCode
from vestry.cli.options import JsonOption
from vestry.cli.output import Output, table


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("doctor", rich_help_panel="Operate")(doctor)


def doctor(as_json: JsonOption = False) -> None:
    """Check what is installed, reachable, mismatched.

    Exit code 1 only where something that is configured cannot work; what is optional and absent
    is listed and no fault.
    """
    found = list(all_checks())
    ok = all(check.ok for check in found)
    document = {
        "ok": ok,
        "checks": [{"name": c.name, "ok": c.ok, "detail": c.detail} for c in found],
    }

    def human(console: Console) -> None:
        marks = {True: Text("ok", style="green"), False: Text("NOT OK", style="bold red")}
        console.print(
            table(("check", "", "detail"), ((c.name, marks[c.ok], c.detail) for c in found))
        )

    Output(as_json=as_json).emit(document, human)
    if not ok:
        raise typer.Exit(ExitCode.FAILED)
