"""What every `vestry submit …` does with the job that it made."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from vestry.cli.failures import CommandError, ExitCode
from vestry.cli.outcomes import answer, read_outcome
from vestry.cli.output import Output
from vestry.cli.session import client, transaction
from vestry.errors import WaitTimeout
from vestry.jobs import JobRequest

IdempotencyOption = Annotated[
    str | None,
    typer.Option(help="The same key and content again is the same job; other content refused."),
]
WaitOption = Annotated[bool, typer.Option("--wait", help="Wait for the result.")]
TaskOption = Annotated[
    str | None,
    typer.Option("--task", help="What it is for; decides which models are good enough."),
]


def submit(
    out: Output,
    job: JobRequest,
    *,
    owner: str,
    privacy: str,
    latency: str,
    task: str | None = None,
    idempotency_key: str | None,
    wait: bool,
    timeout: float | None,
) -> None:
    """Enqueue a job; print its id, or with `wait` its outcome.

    Raises:
        CommandError: it was not finished in time; it goes on.
    """
    with client() as vestry:
        with transaction() as conn:
            reference = vestry.enqueue(
                conn,
                job,
                owner=owner,
                privacy=privacy,
                latency=latency,
                task=task,
                idempotency_key=idempotency_key,
            )
        name = str(reference.id)
        if not wait:
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
            outcome = read_outcome(vestry, reference, wait=True, timeout=timeout)
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
