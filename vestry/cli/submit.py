"""`vestry submit`: one job from the command line."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from vestry.cli.failures import CommandError, ExitCode
from vestry.cli.options import (
    JsonOption,
    LatencyOption,
    ModelOption,
    OwnerOption,
    PrivacyOption,
    TimeoutOption,
)
from vestry.cli.outcomes import answer, read_outcome
from vestry.cli.output import Output
from vestry.cli.session import client, transaction
from vestry.errors import WaitTimeout
from vestry.jobs import Embedding
from vestry.lanes import Latency


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="Submit one job.", no_args_is_help=False)
    group.callback()(_group)
    group.command(
        "embedding",
        epilog="Example: vestry submit embedding --text 'Up betimes.' --owner u17 "
        "--privacy private --wait",
    )(embedding)
    app.add_typer(group, name="submit", rich_help_panel="Jobs")


def _group() -> None:
    """Submit one job."""


def embedding(
    *,
    text: Annotated[
        list[str], typer.Option("--text", help="What to embed. Give it again for more texts.")
    ],
    privacy: PrivacyOption,
    owner: OwnerOption,
    latency: LatencyOption = Latency.INTERACTIVE,
    model: ModelOption = None,
    idempotency_key: Annotated[
        str | None,
        typer.Option(help="The same key and content again is the same job; other content refused."),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the result.")] = False,
    timeout: TimeoutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Embed texts: one vector each. Prints the job's id, or with --wait its result."""
    out = Output(as_json=as_json)
    job = Embedding(texts=text, model=model)
    with client() as vestry:
        with transaction() as conn:
            reference = vestry.enqueue(
                conn,
                job,
                owner=owner,
                privacy=privacy,
                latency=latency,
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
