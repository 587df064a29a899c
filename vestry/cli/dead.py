"""`vestry dead`: jobs that failed for good: list them, look at one, run them once more."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from vestry.cli.connections import open_client
from vestry.cli.errors import CommandError
from vestry.cli.options import JsonOption, SinceOption, parse_since
from vestry.cli.output import Output, table
from vestry.cli.receipts import receipt_document, show_receipts
from vestry.cli.replay import job_document, job_table, replay_all
from vestry.db.receipts import Receipt
from vestry.db.replay import PastJob
from vestry.failure_reasons import Reason
from vestry.lanes import KINDS

KindOption = Annotated[
    str | None, typer.Option("--kind", help=f"Only this kind: {', '.join(KINDS)}.")
]
OwnersOption = Annotated[str | None, typer.Option("--owner", help="Only this owner's.")]
LaneOption = Annotated[str | None, typer.Option("--lane", help="Only those of this lane.")]
CodeOption = Annotated[str | None, typer.Option("--code", help="Only those with this error code.")]
ReasonOption = Annotated[
    Reason | None,
    typer.Option("--reason", help="Only those of this reason.", case_sensitive=False),
]
LimitOption = Annotated[int, typer.Option("--limit", min=1, help="The latest so many.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(
        help="Jobs that failed for good: list them, look at one, run them once more.",
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
    owner: OwnersOption = None,
    lane: LaneOption = None,
    code: CodeOption = None,
    reason: ReasonOption = None,
    ended: SinceOption = None,
    replayed: Annotated[
        bool, typer.Option("--replayed", help="Also those that were replayed already.")
    ] = False,
    limit: LimitOption = 100,
    as_json: JsonOption = False,
) -> None:
    """List dead jobs, the latest first."""
    with open_client() as vestry:
        found = vestry.dead(
            kind=kind, owner=owner, lane=lane, code=code, reason=reason, since=parse_since(ended),
            replayed=replayed, limit=limit,
        )  # fmt: skip
    Output(as_json=as_json).emit(
        {"jobs": [job_document(job) for job in found]},
        lambda console: _show_list(console, found, limit),
    )


def show(
    job: Annotated[str, typer.Argument(metavar="JOB", help="The job's id.")],
    as_json: JsonOption = False,
) -> None:
    """Show why a job is dead, each of its attempts, and whether it can be replayed."""
    with open_client() as vestry:
        found, attempts = vestry.past_job(job), vestry.receipts(job)
    document = job_document(found) | {
        "advice": found.reason and found.reason.advice,
        "attempts": [receipt_document(attempt) for attempt in attempts],
    }
    Output(as_json=as_json).emit(document, lambda console: _show_one(console, found, attempts))


def replay(
    *,
    jobs: Annotated[
        list[str] | None, typer.Argument(metavar="[JOB]…", help="The jobs' ids.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All dead jobs.")] = False,
    kind: KindOption = None,
    owner: OwnersOption = None,
    lane: LaneOption = None,
    code: CodeOption = None,
    reason: ReasonOption = None,
    ended: SinceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run dead jobs once more: those named, those that an option selects, or all.

    Each becomes a new job; one that was replayed before is not replayed again. Exit code 1 where what
    a job was given is no longer kept, so that it cannot be replayed.
    """
    which = {"kind": kind, "owner": owner, "lane": lane, "code": code, "reason": reason}
    which |= {"since": parse_since(ended)}  # type: ignore[dict-item] # of more types than the others
    chosen = {name: value for name, value in which.items() if value is not None}
    if bool(jobs) + every + bool(chosen) != 1:
        raise CommandError(
            "usage", "Name jobs, or select some by options, or say --all: one of the three."
        )
    with open_client() as vestry:
        replay_all(
            vestry, Output(as_json=as_json), jobs, lambda limit: vestry.dead(**chosen, limit=limit)
        )


def _show_list(console: Console, found: list[PastJob], limit: int) -> None:
    if not found:
        console.print("No dead jobs.")
        return
    console.print(job_table(found))
    if len(found) == limit:
        console.print(Text(f"The latest {limit}; --limit shows more.", style="dim"))


def _show_one(console: Console, found: PastJob, attempts: list[Receipt]) -> None:
    status = found.status
    rows: list[tuple[str, object]] = [
        ("job", str(status.job)),
        ("kind", status.kind),
        ("state", status.state),
        ("owner", status.owner),
        ("lane", status.lane),
    ]
    if status.error is not None:
        rows.append(("error", f"{status.error[0]}: {status.error[1]}"))
    if found.reason is not None:
        rows += [("reason", str(found.reason)), ("advice", found.reason.advice)]
    rows.append(("replay of", found.replay_of))
    rows.append(("replayed as", found.replayed_as))
    rows.append(("input", "kept" if found.kept else "no longer kept: it cannot be replayed"))
    console.print(table(("", ""), rows))
    if attempts:
        console.print()
        show_receipts(console, attempts)
