"""`vestry submit rerank`: passages ranked by how well they answer a query."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vestry.cli.errors import CommandError
from vestry.cli.options import (
    JsonOption,
    LatencyOption,
    ModelOption,
    OwnerOption,
    PrivacyOption,
    TimeoutOption,
)
from vestry.cli.output import Output
from vestry.cli.submit.common import (
    KeyOption,
    QualityOption,
    Submission,
    TaskOption,
    TierOption,
    WaitOption,
    submit,
)
from vestry.jobs.rerank import Rerank
from vestry.lanes import Latency


def rerank(
    *,
    query: Annotated[str, typer.Option("--query", help="The query.")],
    privacy: PrivacyOption,
    owner: OwnerOption,
    passage: Annotated[
        list[str] | None, typer.Option(help="A passage to rank. Repeatable.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(help="A file with one passage per line, numbered after those of --passage."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", "-n", min=1, help="Most passages to return.")
    ] = None,
    latency: LatencyOption = Latency.INTERACTIVE,
    task: TaskOption = None,
    quality: QualityOption = "adequate",
    tier: TierOption = None,
    model: ModelOption = None,
    idempotency_key: KeyOption = None,
    wait: WaitOption = False,
    timeout: TimeoutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Rank passages by how well they answer. Prints the job's id or, with --wait, the ranking."""
    passages = [*(passage or ()), *([] if file is None else read_passages(file))]
    if not passages:
        raise CommandError("usage", "There is nothing to rank: give --passage or --file.")
    job = Rerank(query, passages, limit=limit, model=model)
    submission = Submission(
        owner, privacy, latency, task, quality, tier, idempotency_key, wait=wait, timeout=timeout
    )
    submit(job, submission, Output(as_json=as_json))


def read_passages(file: Path) -> list[str]:
    """A file's lines that are not blank.

    Raises:
        CommandError: the file cannot be read, or is not UTF-8 text.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise CommandError("usage", f"{file} cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise CommandError("usage", f"{file} is not UTF-8 text.") from None
    return [line.strip() for line in text.splitlines() if line.strip()]
