"""`vestry lanes`: how busy each lane is, which model servers fail; pause and resume a lane."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vestry.cli.connections import open_client
from vestry.cli.options import JsonOption
from vestry.cli.output import Output, duration, table
from vestry.db.job_queries import BackendStatus

LaneArgument = Annotated[
    str, typer.Argument(metavar="LANE", help="privacy.latency.pool, such as private.bulk.gpu.")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(
        help="Show how busy each lane is; pause and resume one.",
        epilog="Example: vestry lanes pause private.bulk.gpu",
        invoke_without_command=True,
    )
    group.callback()(lanes)
    group.command("pause")(pause)
    group.command("resume")(resume)
    app.add_typer(group, name="lanes", rich_help_panel="Operate")


def lanes(context: typer.Context, as_json: JsonOption = False) -> None:
    """Show how busy each lane is; pause and resume one."""
    if context.invoked_subcommand is not None:
        context.obj = as_json
        return
    with open_client() as vestry:
        found = vestry.lanes()
        failing = vestry.backends()
    document: dict[str, Any] = {
        "lanes": [
            {
                "lane": lane.lane,
                "queued": lane.queued,
                "running": lane.running,
                "oldest_age_s": lane.oldest_age_s,
                "paused": lane.paused,
            }
            for lane in found
        ],
        "backends": [asdict(backend) for backend in failing],
    }

    def human(console: Console) -> None:
        rows = (
            (
                lane.lane,
                lane.queued,
                lane.running,
                duration(lane.oldest_age_s),
                Text("paused", style="yellow") if lane.paused else "",
            )
            for lane in found
        )
        console.print(table(("lane", "#queued", "#running", "#oldest waits", ""), rows))
        if failing:
            console.print()
            console.print(_backends(failing))

    Output(as_json=as_json).emit(document, human)


def _backends(failing: list[BackendStatus]) -> Table:
    """Breakers of the model servers that failed lately."""
    rows = (
        (
            backend.backend,
            Text(backend.breaker.replace("_", "-"), style=STYLES[backend.breaker]),
            backend.failures,
            backend.reason,
            duration(backend.away_s),
        )
        for backend in failing
    )
    columns = ("model server", "breaker", "#failures in a row", "reason", "#tried again in")
    return table(columns, rows)


STYLES = {"closed": "", "half_open": "yellow", "open": "bold red"}


def pause(context: typer.Context, lane: LaneArgument, as_json: JsonOption = False) -> None:
    """Stop picking jobs from a lane. Those that run are left to finish; nothing is lost."""
    _set(lane, paused=True, as_json=as_json or bool(context.obj))


def resume(context: typer.Context, lane: LaneArgument, as_json: JsonOption = False) -> None:
    """Pick jobs from a paused lane again."""
    _set(lane, paused=False, as_json=as_json or bool(context.obj))


def _set(lane: str, *, paused: bool, as_json: bool) -> None:
    with open_client() as vestry:
        if paused:
            vestry.pause_lane(lane)
        else:
            vestry.resume_lane(lane)
    word = "paused" if paused else "resumed"
    Output(as_json=as_json).emit(
        {"lane": lane, "paused": paused},
        lambda console: console.print(Text(f"{lane} {word}")),
    )
