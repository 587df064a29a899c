"""Commands and checks that live in a checkout, not in the wheel: found by entry points, or explained.

An entry point of the group `vestry.commands` is named after its command and names a function
`register(app)` that adds the command to the Typer application. One of the group `vestry.checks` names
a function without arguments that gives checks for `vestry doctor`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import EntryPoint, entry_points

import typer

from vestry.cli.doctor.check import Check
from vestry.cli.errors import CommandError, ExitCode
from vestry.cli.options import JsonOption

GROUP = "vestry.commands"
CHECKS = "vestry.checks"

EXPLAINED = {
    "up": "Run the embedded stack in the foreground: servers, workers, Flower. Ctrl-C drains.",
    "down": "Drain and end the embedded stack.",
    "models": "The catalogue's models: what is at hand, and getting more.",
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
    present |= {group.name for group in app.registered_groups}
    for name, purpose in absent.items():
        if name not in present:
            _explain(app, name, purpose)


def checkout_checks(found: Iterable[EntryPoint] | None = None) -> Iterator[Check]:
    """What `vestry doctor` looks at in a checkout; nothing where only the wheel is installed.

    Args:
        found: the entry points; by default those installed.
    """
    for entry in entry_points(group=CHECKS) if found is None else found:
        try:
            checks: Callable[[], Iterable[Check]] = entry.load()
        except (ImportError, AttributeError):
            continue  # the extras that it needs are not installed, which has a check of its own
        yield from checks()


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
