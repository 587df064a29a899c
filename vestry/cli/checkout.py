"""Commands that live in a checkout, not in the wheel: found by entry points, or explained.

An entry point of the group `vestry.commands` is named after its command and names a function
`register(app)` that adds the command to the Typer application.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint, entry_points

import typer

from vestry.cli.failures import CommandError, ExitCode
from vestry.cli.options import JsonOption

GROUP = "vestry.commands"

EXPLAINED = {
    "up": "Run the embedded stack in the foreground: servers, workers, Flower. Ctrl-C drains.",
    "down": "Drain and end the embedded stack.",
}
"""Commands that are always listed, and what they do."""


def add_commands(app: typer.Typer, found: Iterable[EntryPoint] | None = None) -> None:
    """Add the checkout's commands; in the place of one that is absent, say what to install.

    Args:
        app: the application to add them to.
        found: the entry points; by default those installed.
    """
    absent = dict(EXPLAINED)
    for entry in entry_points(group=GROUP) if found is None else found:
        try:
            register: Callable[[typer.Typer], object] = entry.load()
            register(app)
        except (ImportError, AttributeError) as error:
            # Not there, or another package of that name is.
            absent[entry.name] = absent.get(entry.name, "") or f"Not installed: {error}."
    present = {command.name for command in app.registered_commands}
    for name, purpose in absent.items():
        if name not in present:
            _explain(app, name, purpose)


def _explain(app: typer.Typer, name: str, purpose: str) -> None:
    @app.command(
        name,
        help=f"{purpose} [dim](not installed here)[/dim]",
        rich_help_panel="Workers",
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )
    def absent(as_json: JsonOption = False) -> None:  # noqa: ARG001
        raise CommandError(
            "not_installed",
            f"`vestry {name}` runs from a checkout of Vestry, with the extras: "
            "pip install -e '.[worker,embedded]' there, or `make setup`. "
            "The installed package is for producers alone.",
            ExitCode.UNAVAILABLE,
        )
