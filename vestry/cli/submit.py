"""`vestry submit`: one job from the command line."""

from __future__ import annotations

from typing import Annotated

import typer

from vestry.cli import submit_ocr
from vestry.cli.options import (
    JsonOption,
    LatencyOption,
    ModelOption,
    OwnerOption,
    PrivacyOption,
    TimeoutOption,
)
from vestry.cli.output import Output
from vestry.cli.submitting import IdempotencyOption, WaitOption, submit
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
    group.command("ocr", epilog=submit_ocr.EXAMPLE)(submit_ocr.ocr)
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
    idempotency_key: IdempotencyOption = None,
    wait: WaitOption = False,
    timeout: TimeoutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Embed texts: one vector each. Prints the job's id, or with --wait its result."""
    submit(
        Output(as_json=as_json),
        Embedding(texts=text, model=model),
        owner=owner,
        privacy=privacy,
        latency=latency,
        idempotency_key=idempotency_key,
        wait=wait,
        timeout=timeout,
    )
