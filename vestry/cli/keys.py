"""`vestry keys`: the key-encryption keys, which wrap every owner's data key."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from vestry.admin import key_rotation
from vestry.cli.connections import key_source, operator
from vestry.cli.errors import ExitCode
from vestry.cli.options import JsonOption
from vestry.cli.output import Output, table


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(
        help="List, rotate and retire the keys that private content's keys are wrapped with.",
        epilog="Back the key ring up apart from the database. See docs/privacy.md.",
        no_args_is_help=True,
    )
    group.command("list")(list_keys)
    group.command("new")(new)
    group.command("rotate")(rotate)
    group.command("retire")(retire)
    app.add_typer(group, name="keys", rich_help_panel="Operate")


def list_keys(as_json: JsonOption = False) -> None:
    """Show each key, whether it is current, and how many owners' data keys it wraps."""
    with operator() as conn:
        found = key_rotation.statuses(conn, key_source())
    document = {
        "keys": [
            {
                "key": status.key,
                "current": status.current,
                "in_ring": status.in_ring,
                "wraps": status.wraps,
                "created_at": status.created_at and status.created_at.isoformat(),
                "retired_at": status.retired_at and status.retired_at.isoformat(),
            }
            for status in found
        ]
    }

    def human(console: Console) -> None:
        rows = ((status.key, status.wraps, _standing(status)) for status in found)
        console.print(table(("key", "#wraps", ""), rows))

    Output(as_json=as_json).emit(document, human)
    if any(status.wraps and not status.in_ring for status in found):
        raise typer.Exit(ExitCode.FAILED)


def new(as_json: JsonOption = False) -> None:
    """Add a key to the ring's file that wraps nothing yet; the next rotation takes it.

    For rings that reach their readers by other ways than the file, such as a container's secret:
    hand the new file round, then rotate.
    """
    key = key_rotation.add(key_source())
    _tell(as_json, {"key": key}, f"{key} was added; `vestry keys rotate` takes it into use.")


def rotate(as_json: JsonOption = False) -> None:
    """Wrap every owner's data key with a new key, while everybody goes on working.

    Broken off, the same command takes it up again. The old key stays until it is retired.
    """
    with operator() as conn:
        done = key_rotation.rotate(conn, key_source())
    document = {
        "current": done.current,
        "new": done.new_key,
        "rewrapped": done.rewrapped,
        "left": done.not_rewrapped,
    }
    text = f"{done.rewrapped} data keys were wrapped anew with {done.current}."
    if done.not_rewrapped:
        text += (
            f" {done.not_rewrapped} are wrapped with keys that the key ring lacks; "
            "see `vestry keys list`."
        )
    _tell(as_json, document, text)
    if done.not_rewrapped:
        raise typer.Exit(ExitCode.FAILED)


def retire(
    key: Annotated[
        str | None, typer.Argument(metavar="[KEY]", help="By default all that wrap nothing.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Take old keys that wrap nothing out of the ring; they may wrap nothing again.

    A backup of the database from before the rotation needs the old key: keep a backup of the ring for
    as long as such backups are to be of use, and no longer.
    """
    with operator() as conn:
        gone = key_rotation.retire(conn, key_source(), key)
    text = f"Retired: {', '.join(gone)}." if gone else "There is no key that wraps nothing."
    _tell(as_json, {"retired": gone}, text)


def _standing(status: key_rotation.KeyStatus) -> str:
    if status.retired_at is not None:
        return "retired"
    if status.current:
        return "current"
    if not status.in_ring:
        return "not in the key ring: what it wraps cannot be opened"
    return "opens what it wrapped" if status.created_at else "not used yet"


def _tell(as_json: bool, document: dict[str, object], text: str) -> None:
    Output(as_json=as_json).emit(document, lambda console: console.print(Text(text)))
