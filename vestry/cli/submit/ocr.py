"""`vestry submit ocr`: the text of an image or a PDF."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated, Final

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
    Submission,
    TaskOption,
    WaitOption,
    submit,
)
from vestry.errors import InvalidInput
from vestry.jobs.ocr import FILE, FILE_LIMIT, Ocr
from vestry.lanes import Latency

STDIN: Final = "-"
_RANGE: Final = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")


def ocr(
    *,
    file: Annotated[
        str,
        typer.Argument(
            help="PNG, JPEG, TIFF, WebP or PDF, up to 64 MiB, under any name; `-` is standard input.",
            show_default=False,
        ),
    ],
    privacy: PrivacyOption,
    owner: OwnerOption,
    language: Annotated[
        list[str] | None,
        typer.Option(
            "--language",
            help="Language of the text by Tesseract's code (eng, deu, …). Repeatable, the main "
            "language first. Default: the workers' setting.",
        ),
    ] = None,
    pages: Annotated[
        str | None,
        typer.Option("--pages", help="Read only this page or range: 3, or 3-7. Counted from 1."),
    ] = None,
    dpi: Annotated[
        int | None,
        typer.Option(
            "--dpi",
            help="Resolution of an image that does not record it; for a PDF, the resolution at which "
            "pages without text are rendered.",
        ),
    ] = None,
    word_boxes: Annotated[
        bool,
        typer.Option("--word-boxes", help="Add each word's box and confidence to the result."),
    ] = False,
    keep_file: Annotated[
        bool,
        typer.Option(
            "--keep-file/--no-keep-file",
            help="Keep a shareable file for a while after success; a private file is never kept.",
        ),
    ] = True,
    task: TaskOption = None,
    latency: LatencyOption = Latency.INTERACTIVE,
    model: ModelOption = None,
    idempotency_key: KeyOption = None,
    wait: WaitOption = False,
    timeout: TimeoutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read an image or a PDF. Prints the job's id or, with --wait, the text.

    A page that cannot be read is reported and the others are kept; the job fails if every page fails.
    """
    job = _job(
        file,
        languages=language or None,
        pages=parse_pages(pages),
        dpi=dpi,
        word_boxes=word_boxes,
        model=model,
        keep_file=keep_file,
    )
    submission = Submission(
        owner, privacy, latency, task, idempotency_key=idempotency_key, wait=wait, timeout=timeout
    )
    submit(job, submission, Output(as_json=as_json))


def parse_pages(value: str | None) -> tuple[int, int] | None:
    """First and last page of `--pages`: `3` or `3-7`.

    Raises:
        InvalidInput: the value is neither a page nor a range.
    """
    if value is None:
        return None
    match = _RANGE.fullmatch(value.strip())
    if match is None:
        raise InvalidInput("pages", "must be a page or a range, such as 3 or 3-7")
    return int(match[1]), int(match[2] or match[1])


def _job(
    file: str,
    *,
    languages: list[str] | None,
    pages: tuple[int, int] | None,
    dpi: int | None,
    word_boxes: bool,
    model: str | None,
    keep_file: bool,
) -> Ocr:
    """Build the job; an error of the file names it as on the command line."""
    try:
        return Ocr(
            # One byte more than the limit, so that a larger file is refused and not cut.
            sys.stdin.buffer.read(FILE_LIMIT + 1) if file == STDIN else Path(file),
            languages=languages,
            pages=pages,
            dpi=dpi,
            word_boxes=word_boxes,
            model=model,
            keep_file=keep_file,
        )
    except InvalidInput as error:
        if error.field != FILE:
            raise
        name = "stdin" if file == STDIN else file
        raise CommandError("invalid_input", f"{name}: {error.problem}") from None
