"""`vestry submit classification`: labels for a text."""

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
    text: Annotated[str, typer.Option("--text", help="Text to classify.")],
    privacy: PrivacyOption,
    owner: OwnerOption,
    label: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=DESCRIPTION]",
            help="A label to choose from; a description makes the choice better. Repeatable.",
        ),
    ] = None,
    example: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=TEXT", help="An example text of the label NAME. Repeatable."),
    ] = None,
    multi: Annotated[
        bool, typer.Option("--multi", help="Choose any number of labels, not exactly one.")
    ] = False,
    threshold: Annotated[
        float | None, typer.Option(help="Score, 0 to 1, below which no label is chosen.")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            help="Purpose of the request, such as topic. language and passage-reference need no "
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
    """Choose the label that fits a text. Prints the job's id or, with --wait, the label."""
    job = Classification(
        text,
        labels=parse_labels(label or (), example or ()),
        multi=multi,
        threshold=threshold,
        model=model,
    )
    submission = Submission(
        owner, privacy, latency, task, quality, tier, idempotency_key, wait=wait, timeout=timeout
    )
    submit(job, submission, Output(as_json=as_json))


def parse_labels(labels: Sequence[str], examples: Sequence[str]) -> list[Label]:
    """Labels from `NAME[=DESCRIPTION]`, each with its examples from `NAME=TEXT`.

    Raises:
        CommandError: an example has no `=`, or names none of the labels.
    """
    parts = [label.partition("=") for label in labels]
    texts: dict[str, list[str]] = {name.strip(): [] for name, _, _ in parts}
    for example in examples:
        name, separator, text = example.partition("=")
        if not separator or name.strip() not in texts:
            raise CommandError("usage", "--example takes NAME=TEXT, with the NAME of a --label.")
        texts[name.strip()].append(text.strip())
    return [
        Label(name.strip(), description.strip() or None, texts[name.strip()])
        for name, _, description in parts
    ]
