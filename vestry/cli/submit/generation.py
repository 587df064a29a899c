"""`vestry submit generation`: text from a language model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

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
from vestry.jobs.generation import Generation, Grounding
from vestry.lanes import Latency


def generation(
    *,
    prompt: Annotated[str, typer.Option("--prompt", help="The prompt.")],
    privacy: PrivacyOption,
    owner: OwnerOption,
    system: Annotated[
        str | None, typer.Option(help="Instructions for the model: a system message.")
    ] = None,
    schema: Annotated[
        Path | None,
        typer.Option(help="A file with a JSON schema: the answer is JSON that conforms to it."),
    ] = None,
    ground: Annotated[
        bool,
        typer.Option("--ground", help="Search the owner's passages first, and answer from them."),
    ] = False,
    source: Annotated[
        list[str] | None,
        typer.Option(help="With --ground: also search this shareable source. Repeatable."),
    ] = None,
    own_source: Annotated[
        list[str] | None,
        typer.Option(help="With --ground: search only this source of the owner. Repeatable."),
    ] = None,
    passages: Annotated[int, typer.Option(help="With --ground: most passages to use.")] = 4,
    max_tokens: Annotated[int, typer.Option(help="Most tokens of the answer.")] = 512,
    stop: Annotated[
        list[str] | None,
        typer.Option(help="End the answer before this text. Repeatable."),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(help="Randomness of the answer; 0: the likeliest tokens."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the random choices: equal seeds, equal choices.")
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
    """Generate an answer to a prompt. Prints the job's id or, with --wait, the answer."""
    grounding = None
    if ground or source or own_source:
        grounding = Grounding(sources=source or (), own_sources=own_source, limit=passages)
    job = Generation(
        prompt=prompt,
        system=system,
        schema=None if schema is None else _read_schema(schema),
        stop=stop or (),
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
        grounding=grounding,
        model=model,
    )
    submission = Submission(
        owner, privacy, latency, task, quality, tier, idempotency_key, wait=wait, timeout=timeout
    )
    submit(job, submission, Output(as_json=as_json))


def _read_schema(file: Path) -> Mapping[str, Any]:
    try:
        schema = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CommandError("usage", f"{file} cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError):
        raise CommandError("usage", f"{file} is not valid JSON.") from None
    if not isinstance(schema, dict):
        raise CommandError("usage", f"{file} is not a JSON schema: it must hold an object.")
    return schema
