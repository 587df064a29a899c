"""Shared by `vestry dead` and `vestry rerun`: job filters, job documents, and replays in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Annotated, Any, Final
from uuid import UUID

import typer
from rich.console import Console

from vestry.bisection import bisect_failures
from vestry.cli.errors import CommandError, ExitCode
from vestry.cli.output import Output, table
from vestry.client import Vestry
from vestry.db.job_queries import job_id
from vestry.db.replay import PastJob
from vestry.errors import InvalidInput, PayloadGone, VestryError
from vestry.jobs.results import JobRef
from vestry.lanes import KINDS

TRANSACTION_JOBS: Final = 100
"""Jobs replayed in one transaction."""
MAX_JOBS: Final = 1_000_000
"""Most jobs that one command replays."""
PAYLOAD_GONE: Final = "its input is no longer kept; submit it again"
FOLLOWS_ANOTHER: Final = "it waited for another job; replay that job"
"""Reasons for which a job is not replayed."""

JobsArgument = Annotated[list[str] | None, typer.Argument(metavar="[JOB]…", help="The jobs' ids.")]
KindOption = Annotated[
    str | None, typer.Option("--kind", help=f"Only jobs of this kind: {', '.join(KINDS)}.")
]
OwnerFilter = Annotated[str | None, typer.Option("--owner", help="Only jobs of this owner.")]
LaneOption = Annotated[str | None, typer.Option("--lane", help="Only jobs of this lane.")]


def selected_filters(jobs: Sequence[str] | None, every: bool, **filters: object) -> dict[str, Any]:
    """The filters that were given.

    Raises:
        CommandError: not exactly one of job ids, filters and --all was given.
    """
    selected = {name: value for name, value in filters.items() if value is not None}
    if bool(jobs) + every + bool(selected) != 1:
        raise CommandError(
            "usage", "Give job ids, or options that select jobs, or --all: only one."
        )
    return selected


def job_document(job: PastJob) -> dict[str, Any]:
    """JSON document of a dead or degraded job."""
    status = job.status
    return {
        "job": str(status.job),
        "kind": status.kind,
        "state": status.state,
        "owner": status.owner,
        "privacy": status.privacy,
        "lane": status.lane,
        "reason": job.reason and str(job.reason),
        "error": status.error and {"code": status.error[0], "message": status.error[1]},
        "attempt": status.attempt,
        "finished_at": status.finished_at and status.finished_at.isoformat(),
        "degraded_by": job.degraded_by,
        "intended_model": job.intended_model,
        "served_model": job.served_model,
        "replay_of": job.replay_of and str(job.replay_of),
        "replayed_as": job.replayed_as and str(job.replayed_as),
        "kept": job.kept,
    }


def replay_state(job: PastJob) -> str:
    """The id of the job's replay, or whether a replay is possible."""
    if job.replayed_as is not None:
        return str(job.replayed_as)
    return "possible" if job.kept else "input gone"


def replay_all(
    vestry: Vestry,
    out: Output,
    names: Sequence[str] | None,
    select: Callable[[int], list[PastJob]],
) -> None:
    """Replay jobs and print the new ones; exit with code 1 if some cannot be replayed.

    Args:
        vestry: the client.
        out: the command's output.
        names: job ids; None or empty for the selected jobs.
        select: returns the selected jobs, at most as many as its argument.
    """
    ids = {job_id(name) for name in names} if names else {j.status.job for j in select(MAX_JOBS)}
    replays: dict[UUID, JobRef] = {}
    skipped: dict[UUID, str] = {}
    # Oldest first: a job comes before those that waited for it, which are replayed with it.
    for batch in _batches(sorted(ids)):
        new_replays, new_skipped = _replay(vestry, batch)
        replays |= new_replays
        skipped |= new_skipped
    document = {
        "jobs": [
            {"job": str(old), "replay": str(ref.id), "created": ref.created}
            for old, ref in replays.items()
        ],
        "gone": [str(job) for job, why in skipped.items() if why == PAYLOAD_GONE],
        "follow": [str(job) for job, why in skipped.items() if why == FOLLOWS_ANOTHER],
    }
    out.emit(document, lambda console: _print_replays(console, replays, skipped))
    if skipped:
        raise typer.Exit(ExitCode.FAILED)


def _batches(jobs: Sequence[UUID]) -> Iterator[list[UUID]]:
    remaining = iter(jobs)
    while batch := list(islice(remaining, TRANSACTION_JOBS)):
        yield batch


def _replay(vestry: Vestry, jobs: Sequence[UUID]) -> tuple[dict[UUID, JobRef], dict[UUID, str]]:
    """Replay a batch.

    Returns:
        The replays by the old job's id, and the reason for each job without one.
    """
    replays: dict[UUID, JobRef] = {}
    skipped: dict[UUID, str] = {}
    for part, refs in bisect_failures(jobs, vestry.replay, (PayloadGone, InvalidInput)):
        if isinstance(refs, VestryError):
            skipped[part[0]] = PAYLOAD_GONE if isinstance(refs, PayloadGone) else FOLLOWS_ANOTHER
        else:
            replays.update(zip(part, refs, strict=True))
    return replays, skipped


def _print_replays(console: Console, replays: dict[UUID, JobRef], skipped: dict[UUID, str]) -> None:
    if not replays and not skipped:
        console.print("Nothing to replay.")
        return
    rows = [
        (str(old), str(ref.id), "" if ref.created else "replayed before")
        for old, ref in replays.items()
    ]
    rows += [(str(job), "-", reason) for job, reason in skipped.items()]
    console.print(table(("job", "replay", ""), rows))
