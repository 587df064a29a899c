"""`vestry submit rerank`: passages in the order in which they answer a query."""

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
    query: Annotated[str, typer.Option("--query", help="What is asked.")],
    privacy: PrivacyOption,
    owner: OwnerOption,
    passage: Annotated[
        list[str] | None, typer.Option(help="What may answer it. Again for more.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="A file with a passage on each line, after those given.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", "-n", min=1, help="Only so many of the best.")
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
    """Rank passages by how well they answer. Prints the job's id, or with --wait the ranking."""
    passages = [*(passage or ()), *([] if file is None else lines_of(file))]
    if not passages:
        raise CommandError("usage", "There is nothing to rank: give --passage or --file.")
    job = Rerank(query, passages, limit=limit, model=model)
    how = Submission(
        owner, privacy, latency, task, quality, tier, idempotency_key, wait=wait, timeout=timeout
    )
    submit(job, how, Output(as_json=as_json))


def lines_of(file: Path) -> list[str]:
    """A file's lines that are not blank.

    Raises:
        CommandError: it cannot be read, or is no text.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise CommandError("usage", f"{file} cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise CommandError("usage", f"{file} is not UTF-8 text.") from None
    return [line.strip() for line in text.splitlines() if line.strip()]
