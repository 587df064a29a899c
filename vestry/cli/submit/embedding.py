"""`vestry submit embedding`: vectors of texts."""

from __future__ import annotations

from typing import Annotated

import typer

from vestry.cli.options import (
    JsonOption,
    LatencyOption,
    ModelOption,
    OwnerOption,
    PrivacyOption,
    TimeoutOption,
)
from vestry.cli.output import Output
from vestry.cli.submit.common import KeyOption, Submission, WaitOption, submit
from vestry.jobs.embedding import Embedding
from vestry.lanes import Latency


def embedding(
    *,
    text: Annotated[list[str], typer.Option("--text", help="Text to embed. Repeatable.")],
    privacy: PrivacyOption,
    owner: OwnerOption,
    latency: LatencyOption = Latency.INTERACTIVE,
    model: ModelOption = None,
    idempotency_key: KeyOption = None,
    wait: WaitOption = False,
    timeout: TimeoutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Embed texts, one vector each. Prints the job's id or, with --wait, the vectors."""
    submission = Submission(
        owner, privacy, latency, idempotency_key=idempotency_key, wait=wait, timeout=timeout
    )
    submit(Embedding(texts=text, model=model), submission, Output(as_json=as_json))
