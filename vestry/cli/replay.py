"""What `vestry dead` and `vestry rerun` share: how such jobs are printed, and replaying many."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Final
from uuid import UUID

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vestry.bisection import bisect_failures
from vestry.cli.errors import ExitCode
from vestry.cli.output import Output, table
from vestry.client import Vestry
from vestry.db.job_queries import job_id
from vestry.db.replay import PastJob
from vestry.errors import InvalidInput, PayloadGone, VestryError
from vestry.jobs.results import JobRef

BATCH: Final = 100
"""Jobs replayed in one transaction."""
MOST: Final = 1_000_000
"""Jobs that one command replays."""
GONE: Final = "what it was given is no longer kept"
FOLLOWS: Final = "it waited for another job: replay that one"
"""Why a job is left out."""


def job_document(job: PastJob) -> dict[str, Any]:
    """A dead or degraded job as `--json` prints it."""
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


def job_table(jobs: Sequence[PastJob]) -> Table:
    """Dead jobs for a person."""
    return table(
        ("job", "kind", "lane", "owner", "reason", "code", "ended", "replay"),
        (
            (
                str(job.status.job),
                job.status.kind,
                job.status.lane,
                job.status.owner,
                Text(str(job.reason or "-"), style="bold red"),
                job.status.error and job.status.error[0],
                job.status.finished_at and f"{job.status.finished_at:%Y-%m-%d %H:%M}",
                standing(job),
            )
            for job in jobs
        ),
    )


def standing(job: PastJob) -> str:
    """Whether a job can be replayed, or was."""
    if job.replayed_as is not None:
        return str(job.replayed_as)
    return "possible" if job.kept else "input gone"


def replay_all(
    vestry: Vestry,
    out: Output,
    named: Sequence[str] | None,
    listed: Callable[[int], list[PastJob]],
) -> None:
    """Replay the jobs named, or else those listed; print the new ones, and leave with 1 for some gone.

    Args:
        vestry: the client.
        out: where to print.
        named: ids.
        listed: the jobs meant where none is named, at most so many.
    """
    ids = {job_id(name) for name in named} if named else {j.status.job for j in listed(MOST)}
    made: dict[UUID, JobRef] = {}
    left: dict[UUID, str] = {}
    # The oldest first: a job comes before those that waited for it, which are replayed with it.
    for batch in _batches(sorted(ids)):
        refs, lost = _replay(vestry, batch)
        made |= refs
        left |= lost
    document = {
        "jobs": [
            {"job": str(old), "replay": str(ref.id), "created": ref.created}
            for old, ref in made.items()
        ],
        "gone": [str(job) for job, why in left.items() if why == GONE],
        "follow": [str(job) for job, why in left.items() if why == FOLLOWS],
    }
    out.emit(document, lambda console: _show(console, made, left))
    if left:
        raise typer.Exit(ExitCode.FAILED)


def _replay(vestry: Vestry, jobs: Sequence[UUID]) -> tuple[dict[UUID, JobRef], dict[UUID, str]]:
    """Replay a batch, but for those that cannot be: their input is gone, or they follow another."""
    made: dict[UUID, JobRef] = {}
    left: dict[UUID, str] = {}
    for part, refs in bisect_failures(jobs, vestry.replay, (PayloadGone, InvalidInput)):
        if isinstance(refs, VestryError):
            left[part[0]] = GONE if isinstance(refs, PayloadGone) else FOLLOWS
        else:
            made.update(zip(part, refs, strict=True))
    return made, left


def _batches(jobs: Sequence[UUID]) -> Iterator[list[UUID]]:
    left = iter(jobs)
    while batch := list(islice(left, BATCH)):
        yield batch


def _show(console: Console, made: dict[UUID, JobRef], left: dict[UUID, str]) -> None:
    if not made and not left:
        console.print("Nothing to replay.")
        return
    rows = [
        (str(old), str(ref.id), "" if ref.created else "was replayed before")
        for old, ref in made.items()
    ]
    rows += [(str(job), "-", why) for job, why in left.items()]
    console.print(table(("job", "replay", ""), rows))
