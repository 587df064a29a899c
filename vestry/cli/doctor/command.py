"""`vestry doctor`: the command, and the order of its checks."""

from __future__ import annotations

from collections.abc import Iterator

import typer
from rich.console import Console
from rich.text import Text

from vestry.cli.doctor import checks
from vestry.cli.doctor.checks import Check
from vestry.cli.doctor.stack import stack_checks
from vestry.cli.errors import ExitCode
from vestry.cli.options import JsonOption
from vestry.cli.output import Output, table
from vestry.cli.plugins import checkout_checks


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("doctor", rich_help_panel="Operate")(doctor)


def doctor(as_json: JsonOption = False) -> None:
    """Check packages, settings, database, broker, stack and models.

    Exit code 1 if a configured part cannot work. A missing optional part is listed and is no error.
    """
    results = list(_all_checks())
    ok = all(check.ok for check in results)
    document = {
        "ok": ok,
        "checks": [{"name": c.name, "ok": c.ok, "detail": c.detail} for c in results],
    }

    def print_text(console: Console) -> None:
        marks = {True: Text("ok", style="green"), False: Text("NOT OK", style="bold red")}
        rows = ((c.name, marks[c.ok], c.detail) for c in results)
        console.print(table(("check", "", "detail"), rows))

    Output(as_json=as_json).emit(document, print_text)
    if not ok:
        raise typer.Exit(ExitCode.FAILED)


def _all_checks() -> Iterator[Check]:
    """Every check; one whose failure explains later failures comes first."""
    yield checks.python()
    yield from checks.packages()
    client, settings_checks = checks.settings()
    yield from settings_checks
    if client is not None:
        yield from checks.database(client)
    yield from checks.broker()
    yield from stack_checks()
    yield checks.model()
    yield checks.device()
    yield from checkout_checks()
