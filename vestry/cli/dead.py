"""`vestry dead`: list dead jobs, show one with its attempts, replay them."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from vestry.cli.connections import open_client
from vestry.cli.options import JsonOption, SinceOption, parse_since
from vestry.cli.output import Output, table
from vestry.cli.receipts import print_receipts, receipt_document
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
from vestry.db.receipts import Receipt
from vestry.db.replay import LIMIT_MAX, PastJob
from vestry.failure_reasons import Reason

CodeOption = Annotated[str | None, typer.Option("--code", help="Only jobs with this error code.")]
ReasonOption = Annotated[
    Reason | None,
    typer.Option("--reason", help="Only jobs that died for this reason.", case_sensitive=False),
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(
        help="List the jobs that failed for good, show one, or run them again.",
        epilog="Example: vestry dead replay --reason out_of_attempts --since 2h",
        no_args_is_help=True,
    )
    group.command("list")(list_dead)
    group.command("show")(show)
    group.command("replay")(replay)
    app.add_typer(group, name="dead", rich_help_panel="Operate")


def list_dead(
    *,
    kind: KindOption = None,
    owner: OwnerFilter = None,
    lane: LaneOption = None,
    code: CodeOption = None,
    reason: ReasonOption = None,
    ended: SinceOption = None,
    replayed: Annotated[
        bool, typer.Option("--replayed", help="Include jobs that were replayed already.")
    ] = False,
    limit: Annotated[
        int, typer.Option("--limit", min=1, max=LIMIT_MAX, help="Most jobs to list.")
    ] = 100,
    as_json: JsonOption = False,
) -> None:
    """List dead jobs, latest first."""
    with open_client() as vestry:
        jobs = vestry.dead(
            kind=kind, owner=owner, lane=lane, code=code, reason=reason, since=parse_since(ended),
            replayed=replayed, limit=limit,
        )  # fmt: skip
    Output(as_json=as_json).emit(
        {"jobs": [job_document(job) for job in jobs]},
        lambda console: _print_jobs(console, jobs, limit),
    )


def show(
    job: Annotated[str, typer.Argument(metavar="JOB", help="The job's id.")],
    as_json: JsonOption = False,
) -> None:
    """Show why a job is dead, its attempts, and whether it can be replayed."""
    with open_client() as vestry:
        past_job, attempts = vestry.past_job(job), vestry.receipts(job)
    document = job_document(past_job) | {
        "advice": past_job.reason and past_job.reason.advice,
        "attempts": [receipt_document(attempt) for attempt in attempts],
    }
    Output(as_json=as_json).emit(document, lambda console: _print_job(console, past_job, attempts))


def replay(
    *,
    jobs: JobsArgument = None,
    every: Annotated[bool, typer.Option("--all", help="All dead jobs.")] = False,
    kind: KindOption = None,
    owner: OwnerFilter = None,
    lane: LaneOption = None,
    code: CodeOption = None,
    reason: ReasonOption = None,
    ended: SinceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run dead jobs again: by id, by options that select jobs, or all.

    Each becomes a new job; a job that was replayed before is not replayed again. Exit code 1 if the
    input of a job is no longer kept, so that it cannot be replayed.
    """
    filters = selected_filters(
        jobs, every, kind=kind, owner=owner, lane=lane, code=code, reason=reason,
        since=parse_since(ended),
    )  # fmt: skip
    with open_client() as vestry:
        replay_all(
            vestry, Output(as_json=as_json), jobs, lambda limit: vestry.dead(**filters, limit=limit)
        )


def _print_jobs(console: Console, jobs: list[PastJob], limit: int) -> None:
    if not jobs:
        console.print("No dead jobs.")
        return
    rows = (
        (
            str(job.status.job),
            job.status.kind,
            job.status.lane,
            job.status.owner,
            Text(str(job.reason or "-"), style="bold red"),
            job.status.error and job.status.error[0],
            job.status.finished_at and f"{job.status.finished_at:%Y-%m-%d %H:%M}",
            replay_state(job),
        )
        for job in jobs
    )
    columns = ("job", "kind", "lane", "owner", "reason", "code", "ended", "replay")
    console.print(table(columns, rows))
    if len(jobs) == limit:
        console.print(Text(f"The latest {limit} are listed; --limit lists more.", style="dim"))


def _print_job(console: Console, past_job: PastJob, attempts: list[Receipt]) -> None:
    status = past_job.status
    rows: list[tuple[str, object]] = [
        ("job", str(status.job)),
        ("kind", status.kind),
        ("state", status.state),
        ("owner", status.owner),
        ("lane", status.lane),
    ]
    if status.error is not None:
        rows.append(("error", f"{status.error[0]}: {status.error[1]}"))
    if past_job.reason is not None:
        rows += [("reason", str(past_job.reason)), ("advice", past_job.reason.advice)]
    rows.append(("replay of", past_job.replay_of))
    rows.append(("replayed as", past_job.replayed_as))
    rows.append(
        ("input", "kept" if past_job.kept else "no longer kept: the job cannot be replayed")
    )
    console.print(table(("", ""), rows))
    if attempts:
        console.print()
        print_receipts(console, attempts)
