"""What every `vestry submit KIND` has in common: enqueue one job, and wait for it on request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer
from rich.text import Text

from vestry.cli.connections import open_client, transaction
from vestry.cli.errors import CommandError, ExitCode
from vestry.cli.output import Output
from vestry.cli.results import answer, read_outcome
from vestry.errors import WaitTimeout
from vestry.jobs.base import JobRequest
from vestry.lanes import Latency, Privacy

TaskOption = Annotated[
    str | None,
    typer.Option(
        "--task", help="What the request is for, such as study-guide: routing looks at it."
    ),
]
QualityOption = Annotated[
    str,
    typer.Option("--quality", help="adequate, or best: prefers the largest model, at its price."),
]
TierOption = Annotated[
    str | None, typer.Option("--tier", help="The user's tier; offline never leaves the house.")
]
KeyOption = Annotated[
    str | None,
    typer.Option(help="The same key and content again is the same job; other content refused."),
]
WaitOption = Annotated[bool, typer.Option("--wait", help="Wait for the result.")]


@dataclass(frozen=True, slots=True)
class Submission:
    """How a job is to be submitted; see `Vestry.enqueue`."""

    owner: str
    privacy: Privacy
    latency: Latency
    task: str | None = None
    quality: str = "adequate"
    tier: str | None = None
    idempotency_key: str | None = None
    wait: bool = False
    timeout: float | None = None


def submit(job: JobRequest, how: Submission, out: Output) -> None:
    """Enqueue a job and print its id, or with `wait` its result.

    Raises:
        CommandError: it was not done in the time given, or somebody interrupted the wait.
    """
    with open_client() as vestry:
        with transaction() as conn:
            reference = vestry.enqueue(
                conn,
                job,
                owner=how.owner,
                privacy=how.privacy,
                latency=how.latency,
                task=how.task,
                quality=how.quality,
                tier=how.tier,
                idempotency_key=how.idempotency_key,
            )
        name = str(reference.id)
        if not how.wait:
            found = vestry.status(reference)
            out.emit(
                {
                    "job": name,
                    "kind": job.kind,
                    "state": found.state,
                    "result": None,
                    "error": None,
                    "created": reference.created,
                },
                lambda console: console.print(Text(name)),
            )
            return
        try:
            outcome = read_outcome(vestry, reference, wait=True, timeout=how.timeout)
        except (WaitTimeout, KeyboardInterrupt) as error:
            timed_out = isinstance(error, WaitTimeout)
            raise CommandError(
                "wait_timeout" if timed_out else "interrupted",
                f"{'Not finished in the time given.' if timed_out else 'Interrupted.'} "
                f"The job goes on: `vestry wait {name}`.",
                ExitCode.TIMEOUT if timed_out else ExitCode.INTERRUPTED,
                job=name,
                kind=job.kind,
                state=vestry.status(reference).state,
                result=None,
            ) from None
    answer(out, outcome)
