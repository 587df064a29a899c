"""`vestry lanes`: queue lengths and circuit breakers; pause and resume a lane."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Final

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

BREAKER_STYLES: Final = {"closed": "", "half_open": "yellow", "open": "bold red"}


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(
        help="Show the jobs of each lane; pause and resume a lane.",
        epilog="Example: vestry lanes pause private.bulk.gpu",
        invoke_without_command=True,
    )
    group.callback()(lanes)
    group.command("pause")(pause)
    group.command("resume")(resume)
    app.add_typer(group, name="lanes", rich_help_panel="Operate")


def lanes(context: typer.Context, as_json: JsonOption = False) -> None:
    """Show the jobs of each lane; pause and resume a lane."""
    if context.invoked_subcommand is not None:
        context.obj = as_json
        return
    with open_client() as vestry:
        statuses = vestry.lanes()
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
            for lane in statuses
        ],
        "backends": [asdict(backend) for backend in failing],
    }

    def print_text(console: Console) -> None:
        rows = (
            (
                lane.lane,
                lane.queued,
                lane.running,
                duration(lane.oldest_age_s),
                Text("paused", style="yellow") if lane.paused else "",
            )
            for lane in statuses
        )
        console.print(table(("lane", "#queued", "#running", "#oldest waits", ""), rows))
        if failing:
            console.print()
            console.print(_breaker_table(failing))

    Output(as_json=as_json).emit(document, print_text)


def _breaker_table(failing: list[BackendStatus]) -> Table:
    """Circuit breakers of the backends that failed recently."""
    rows = (
        (
            backend.backend,
            Text(backend.breaker.replace("_", "-"), style=BREAKER_STYLES[backend.breaker]),
            backend.failures,
            backend.reason,
            duration(backend.away_s),
        )
        for backend in failing
    )
    columns = ("backend", "circuit breaker", "#failures in a row", "reason", "#next probe in")
    return table(columns, rows)


def pause(context: typer.Context, lane: LaneArgument, as_json: JsonOption = False) -> None:
    """Stop claiming jobs from a lane. Running jobs finish; queued jobs stay queued."""
    _set_paused(lane, paused=True, as_json=as_json or bool(context.obj))


def resume(context: typer.Context, lane: LaneArgument, as_json: JsonOption = False) -> None:
    """Claim jobs from a paused lane again."""
    _set_paused(lane, paused=False, as_json=as_json or bool(context.obj))


def _set_paused(lane: str, *, paused: bool, as_json: bool) -> None:
    with open_client() as vestry:
        if paused:
            vestry.pause_lane(lane)
        else:
            vestry.resume_lane(lane)
    change = "paused" if paused else "resumed"
    Output(as_json=as_json).emit(
        {"lane": lane, "paused": paused},
        lambda console: console.print(Text(f"{lane} {change}")),
    )
