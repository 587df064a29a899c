"""Commands and checks of a checkout, which the wheel lacks: loaded from entry points.

An entry point of the group `vestry.commands` has its command's name and refers to a function
`register(app)` that adds the command to the Typer application. One of the group `vestry.checks` refers
to a function without arguments that returns checks for `vestry doctor`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import EntryPoint, entry_points

import typer

from vestry.cli.doctor.checks import Check
from vestry.cli.errors import CommandError, ExitCode
from vestry.cli.options import JsonOption

COMMANDS_GROUP = "vestry.commands"
CHECKS_GROUP = "vestry.checks"

CHECKOUT_COMMANDS = {
    "up": "Run the embedded stack in the foreground: servers, workers, Flower. Ctrl-C drains.",
    "down": "Drain and stop the embedded stack.",
    "models": "List the catalogue's models and where they are available; download more.",
}
"""Commands that the help lists even if they are not installed, with their help."""


def add_commands(app: typer.Typer, entries: Iterable[EntryPoint] | None = None) -> None:
    """Add the checkout's commands; a command that is missing is replaced by an error.

    Args:
        app: the application to add them to.
        entries: the entry points; by default the installed ones.
    """
    absent = dict(CHECKOUT_COMMANDS)
    for entry in entry_points(group=COMMANDS_GROUP) if entries is None else entries:
        try:
            register: Callable[[typer.Typer], object] = entry.load()
            register(app)
        except (ImportError, AttributeError) as error:
            # The module is missing, or another package has its name.
            absent[entry.name] = absent.get(entry.name, "") or f"Not installed: {error}."
    present = {command.name for command in app.registered_commands}
    present |= {group.name for group in app.registered_groups}
    for name, purpose in absent.items():
        if name not in present:
            _add_placeholder(app, name, purpose)


def checkout_checks(entries: Iterable[EntryPoint] | None = None) -> Iterator[Check]:
    """The checkout's checks for `vestry doctor`; none if only the wheel is installed.

    Args:
        entries: the entry points; by default the installed ones.
    """
    for entry in entry_points(group=CHECKS_GROUP) if entries is None else entries:
        try:
            checks: Callable[[], Iterable[Check]] = entry.load()
        except (ImportError, AttributeError):
            continue  # its extras are missing, which `checks.packages` reports
        yield from checks()


def _add_placeholder(app: typer.Typer, name: str, purpose: str) -> None:
    """Add a command that fails and says how to install the real one."""

    @app.command(
        name,
        help=f"{purpose} [dim](not installed here)[/dim]",
        rich_help_panel="Workers",
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )
    def absent(as_json: JsonOption = False) -> None:  # noqa: ARG001
        raise CommandError(
            "not_installed",
            f"`vestry {name}` needs a checkout of Vestry with its extras: run `make setup`, or "
            "pip install -e '.[worker,embedded]', in the checkout. "
            "The installed package is for producers only.",
            ExitCode.UNAVAILABLE,
        )
