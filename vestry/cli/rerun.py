"""`vestry rerun` and `vestry status --degraded`: results of another model than the one intended."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from vestry.cli.connections import open_client
from vestry.cli.dead import KindOption, LaneOption, OwnersOption
from vestry.cli.errors import CommandError
from vestry.cli.options import JsonOption, SinceOption, parse_since
from vestry.cli.output import Output, table
from vestry.cli.replay import job_document, replay_all, standing
from vestry.client import Vestry
from vestry.db.replay import PastJob


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("rerun", rich_help_panel="Operate")(rerun)


def rerun(
    *,
    jobs: Annotated[
        list[str] | None, typer.Argument(metavar="[JOB]…", help="The jobs' ids.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All degraded results.")] = False,
    kind: KindOption = None,
    owner: OwnersOption = None,
    lane: LaneOption = None,
    ended: SinceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run jobs once more that another model served: those named, those selected, or all.

    `vestry status --degraded` lists them. Each becomes a new job, with a result of its own; the old
    result stays as long as it would have. Exit code 1 where what a job was given is no longer kept.
    """
    chosen = {
        name: value
        for name, value in (
            ("kind", kind),
            ("owner", owner),
            ("lane", lane),
            ("since", parse_since(ended)),
        )
        if value is not None
    }
    if bool(jobs) + every + bool(chosen) != 1:
        raise CommandError(
            "usage", "Name jobs, or select some by options, or say --all: one of the three."
        )
    with open_client() as vestry:
        replay_all(
            vestry,
            Output(as_json=as_json),
            jobs,
            lambda limit: vestry.degraded(**chosen, limit=limit),
        )


def list_degraded(vestry: Vestry, out: Output) -> None:
    """Print the results that `rerun` is for."""
    found = vestry.degraded()
    out.emit({"jobs": [job_document(job) for job in found]}, lambda console: _show(console, found))


def _show(console: Console, found: list[PastJob]) -> None:
    if not found:
        console.print("No degraded results.")
        return
    console.print(
        table(
            ("job", "kind", "lane", "owner", "why", "intended", "served by", "rerun"),
            (
                (
                    str(job.status.job),
                    job.status.kind,
                    job.status.lane,
                    job.status.owner,
                    job.degraded_by,
                    job.intended_model,
                    job.served_model,
                    standing(job),
                )
                for job in found
            ),
        )
    )
