"""Options of `vestry submit KIND`; enqueue one job and, with --wait, wait for its result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer
from rich.text import Text

from vestry.cli.connections import open_client, transaction
from vestry.cli.errors import CommandError, ExitCode
from vestry.cli.output import Output
from vestry.cli.results import print_outcome, read_outcome
from vestry.errors import WaitTimeout
from vestry.jobs.base import JobRequest
from vestry.lanes import Latency, Privacy

TaskOption = Annotated[
    str | None,
    typer.Option(
        "--task", help="Purpose of the request, such as study-guide: routing can depend on it."
    ),
]
QualityOption = Annotated[
    str,
    typer.Option(
        "--quality", help="adequate, or best: prefer the largest model, whatever it costs."
    ),
]
TierOption = Annotated[
    str | None,
    typer.Option(
        "--tier", help="The user's tier, which routing can depend on. offline: local models only."
    ),
]
KeyOption = Annotated[
    str | None,
    typer.Option(
        help="Idempotency key: with the same content the first job is returned, with other content "
        "the job is refused."
    ),
]
WaitOption = Annotated[bool, typer.Option("--wait", help="Wait for the result and print it.")]


@dataclass(frozen=True, slots=True)
class Submission:
    """Options of a job's submission: those of `Vestry.enqueue`, and whether to wait for the result."""

    owner: str
    privacy: Privacy
    latency: Latency
    task: str | None = None
    quality: str = "adequate"
    tier: str | None = None
    idempotency_key: str | None = None
    wait: bool = False
    timeout: float | None = None


def submit(job: JobRequest, submission: Submission, out: Output) -> None:
    """Enqueue a job and print its id or, with `wait`, its result.

    Raises:
        CommandError: the job did not finish within the timeout, or Ctrl-C ended the wait.
    """
    with open_client() as vestry:
        with transaction() as conn:
            reference = vestry.enqueue(
                conn,
                job,
                owner=submission.owner,
                privacy=submission.privacy,
                latency=submission.latency,
                task=submission.task,
                quality=submission.quality,
                tier=submission.tier,
                idempotency_key=submission.idempotency_key,
            )
        name = str(reference.id)
        if not submission.wait:
            out.emit(
                {
                    "job": name,
                    "kind": job.kind,
                    "state": vestry.status(reference).state,
                    "result": None,
                    "error": None,
                    "created": reference.created,
                },
                lambda console: console.print(Text(name)),
            )
            return
        try:
            outcome = read_outcome(vestry, reference, wait=True, timeout=submission.timeout)
        except (WaitTimeout, KeyboardInterrupt) as error:
            timed_out = isinstance(error, WaitTimeout)
            raise CommandError(
                "wait_timeout" if timed_out else "interrupted",
                f"{'Not finished within the timeout.' if timed_out else 'Interrupted.'} "
                f"The job continues; `vestry wait {name}` waits for it.",
                ExitCode.TIMEOUT if timed_out else ExitCode.INTERRUPTED,
                job=name,
                kind=job.kind,
                state=vestry.status(reference).state,
                result=None,
            ) from None
    print_outcome(out, outcome)
