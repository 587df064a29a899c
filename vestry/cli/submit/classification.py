"""`vestry submit classification`: the label that fits a text, or those that do."""

from __future__ import annotations

from collections.abc import Sequence
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
    TierOption,
    WaitOption,
    submit,
)
from vestry.jobs.classification import Classification, Label
from vestry.lanes import Latency


def classification(
    *,
    text: Annotated[str, typer.Option("--text", help="What to classify.")],
    privacy: PrivacyOption,
    owner: OwnerOption,
    label: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=DESCRIPTION]",
            help="A label to choose from, better with what it is about. Again for more.",
        ),
    ] = None,
    example: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=TEXT", help="A text that has the label NAME. Again for more."),
    ] = None,
    multi: Annotated[bool, typer.Option("--multi", help="Any number of labels may fit.")] = False,
    threshold: Annotated[
        float | None, typer.Option(help="Score, 0 to 1, below which a label is not given.")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            help="What the request is for, such as topic. language and passage-reference need no "
            "labels.",
        ),
    ] = None,
    latency: LatencyOption = Latency.INTERACTIVE,
    quality: QualityOption = "adequate",
    tier: TierOption = None,
    model: ModelOption = None,
    idempotency_key: KeyOption = None,
    wait: WaitOption = False,
    timeout: TimeoutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Choose the label that fits a text. Prints the job's id, or with --wait the label."""
    job = Classification(
        text,
        labels=labels_of(label or (), example or ()),
        multi=multi,
        threshold=threshold,
        model=model,
    )
    how = Submission(
        owner, privacy, latency, task, quality, tier, idempotency_key, wait=wait, timeout=timeout
    )
    submit(job, how, Output(as_json=as_json))


def labels_of(given: Sequence[str], examples: Sequence[str]) -> list[Label]:
    """Labels from `NAME[=DESCRIPTION]`, each with its examples from `NAME=TEXT`.

    Raises:
        CommandError: an example is of no label given.
    """
    named = [one.partition("=") for one in given]
    texts: dict[str, list[str]] = {name.strip(): [] for name, _, _ in named}
    for one in examples:
        name, found, text = one.partition("=")
        if not found or name.strip() not in texts:
            raise CommandError("usage", "--example wants NAME=TEXT, with the NAME of a --label.")
        texts[name.strip()].append(text.strip())
    return [
        Label(name.strip(), about.strip() or None, texts[name.strip()]) for name, _, about in named
    ]
