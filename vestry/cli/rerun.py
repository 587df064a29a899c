"""`vestry rerun` and `vestry status --degraded`: results of another model than the intended one."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from vestry.cli.connections import open_client
from vestry.cli.options import JsonOption, SinceOption, parse_since
from vestry.cli.output import Output, table
from vestry.cli.replay import (
    JobsArgument,
    KindOption,
    LaneOption,
    OwnerFilter,
    job_document,
    replay_all,
    replay_state,
    selected_filters,
)
from vestry.client import Vestry
from vestry.db.replay import PastJob


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("rerun", rich_help_panel="Operate")(rerun)


def rerun(
    *,
    jobs: JobsArgument = None,
    every: Annotated[bool, typer.Option("--all", help="All degraded results.")] = False,
    kind: KindOption = None,
    owner: OwnerFilter = None,
    lane: LaneOption = None,
    ended: SinceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run jobs again that another model served: by id, by options that select jobs, or all.

    `vestry status --degraded` lists them. Each becomes a new job with its own result; the old result
    is kept as long as before. Exit code 1 if the input of a job is no longer kept.
    """
    filters = selected_filters(
        jobs, every, kind=kind, owner=owner, lane=lane, since=parse_since(ended)
    )
    with open_client() as vestry:
        replay_all(
            vestry,
            Output(as_json=as_json),
            jobs,
            lambda limit: vestry.degraded(**filters, limit=limit),
        )


def list_degraded(vestry: Vestry, out: Output) -> None:
    """Print the degraded results."""
    jobs = vestry.degraded()
    document = {"jobs": [job_document(job) for job in jobs]}
    out.emit(document, lambda console: _print_jobs(console, jobs))


def _print_jobs(console: Console, jobs: list[PastJob]) -> None:
    if not jobs:
        console.print("No degraded results.")
        return
    rows = (
        (
            str(job.status.job),
            job.status.kind,
            job.status.lane,
            job.status.owner,
            job.degraded_by,
            job.intended_model,
            job.served_model,
            replay_state(job),
        )
        for job in jobs
    )
    columns = ("job", "kind", "lane", "owner", "reason", "intended", "served by", "rerun")
    console.print(table(columns, rows))
