"""`vestry keys`: list, add, rotate and retire the key-encryption keys, which wrap owners' data keys."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from vestry.admin import key_rotation
from vestry.cli.connections import key_source, operator_connection
from vestry.cli.errors import ExitCode
from vestry.cli.options import JsonOption
from vestry.cli.output import Output, table


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(
        help="List, add, rotate and retire the keys that protect private content.",
        epilog="Back up the key ring, separately from the database. See docs/privacy.md.",
        no_args_is_help=True,
    )
    group.command("list")(list_keys)
    group.command("new")(new)
    group.command("rotate")(rotate)
    group.command("retire")(retire)
    app.add_typer(group, name="keys", rich_help_panel="Operate")


def list_keys(as_json: JsonOption = False) -> None:
    """Show each key, whether it is current, and how many owners' data keys it wraps."""
    with operator_connection() as conn:
        statuses = key_rotation.statuses(conn, key_source())
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
            for status in statuses
        ]
    }

    def print_text(console: Console) -> None:
        rows = ((status.key, status.wraps, _key_state(status)) for status in statuses)
        console.print(table(("key", "#wraps", ""), rows))

    Output(as_json=as_json).emit(document, print_text)
    if any(status.wraps and not status.in_ring for status in statuses):
        raise typer.Exit(ExitCode.FAILED)


def new(as_json: JsonOption = False) -> None:
    """Add an unused key to the key ring's file; the next rotation makes it current.

    For key rings that are copied to workers, such as a container's secret: distribute the new file,
    then rotate.
    """
    key = key_rotation.add(key_source())
    _emit_line(as_json, {"key": key}, f"{key} was added; `vestry keys rotate` makes it current.")


def rotate(as_json: JsonOption = False) -> None:
    """Wrap every owner's data key with a new key, while workers and producers keep running.

    If it is interrupted, run it again to continue. The old key stays until it is retired.
    """
    with operator_connection() as conn:
        done = key_rotation.rotate(conn, key_source())
    document = {
        "current": done.current,
        "new": done.new_key,
        "rewrapped": done.rewrapped,
        "left": done.not_rewrapped,
    }
    text = f"{done.rewrapped} data keys were wrapped with {done.current}."
    if done.not_rewrapped:
        text += (
            f" {done.not_rewrapped} are wrapped with keys that are not in the key ring; "
            "`vestry keys list` shows them."
        )
    _emit_line(as_json, document, text)
    if done.not_rewrapped:
        raise typer.Exit(ExitCode.FAILED)


def retire(
    key: Annotated[
        str | None,
        typer.Argument(metavar="[KEY]", help="Default: all that wrap no data key."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Remove from the key ring the old keys that wrap no data key.

    A retired key is never used again.

    A backup of the database from before the rotation needs the old key: keep a backup of the key ring
    for as long as you want to restore such backups, and no longer.
    """
    with operator_connection() as conn:
        retired = key_rotation.retire(conn, key_source(), key)
    text = (
        f"Retired: {', '.join(retired)}." if retired else "Nothing to retire: no old key is unused."
    )
    _emit_line(as_json, {"retired": retired}, text)


def _key_state(status: key_rotation.KeyStatus) -> str:
    if status.retired_at is not None:
        return "retired"
    if status.current:
        return "current"
    if not status.in_ring:
        return "not in the key ring: the data keys that it wraps cannot be unwrapped"
    return "old: unwraps only" if status.created_at else "not used yet"


def _emit_line(as_json: bool, document: dict[str, object], text: str) -> None:
    Output(as_json=as_json).emit(document, lambda console: console.print(Text(text)))
