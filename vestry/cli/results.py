"""A job's outcome as the commands print it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import typer
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from vestry.cli.errors import ExitCode
from vestry.cli.output import Output, table
from vestry.cli.search import printable
from vestry.client import Vestry
from vestry.db.job_queries import JobLike
from vestry.errors import JobFailed, ResultGone
from vestry.jobs.ocr import OcrPage, OcrResult

VECTOR_SHOWN = 4
"""Numbers of a vector that a person is shown."""
PASSAGE_SHOWN = 200
"""Characters of a cited passage."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished job; `result` where it succeeded, else `error`, code and message."""

    job: str
    kind: str
    state: str
    result: dict[str, Any] | None
    error: tuple[str, str] | None

    def document(self) -> dict[str, Any]:
        """The JSON shape other programs rely on."""
        error = None
        if self.error is not None:
            error = {"code": self.error[0], "message": self.error[1]}
        return {
            "job": self.job,
            "kind": self.kind,
            "state": self.state,
            "result": self.result,
            "error": error,
        }


def read_outcome(
    vestry: Vestry, job: JobLike, *, wait: bool, timeout: float | None = None
) -> Outcome:
    """A job's outcome, waited for if need be.

    Raises:
        WaitTimeout, NotFinished, UnknownJob: there is none yet, or never will be.
    """
    if wait:
        vestry.wait_finished(job, timeout)
    status = vestry.status(job)
    result: dict[str, Any] | None = None
    error = None
    try:
        result = vestry.result_json(job)
    except JobFailed as failed:
        error = (failed.code, failed.message)
    except ResultGone as gone:
        error = ("result_gone", str(gone))
    return Outcome(str(status.job), status.kind, status.state, result, error)


def answer(out: Output, outcome: Outcome) -> None:
    """Print an outcome, and leave with exit code 1 where there is no result."""
    out.emit(outcome.document(), lambda console: _show(console, outcome))
    if outcome.error is not None:
        raise typer.Exit(ExitCode.FAILED)


def _show(console: Console, outcome: Outcome) -> None:
    if outcome.error is not None:
        code, message = outcome.error
        console.print(
            Text.assemble((outcome.state, "bold red"), f"  {code}: {message}  (job {outcome.job})")
        )
        return
    console.print(Text.assemble((outcome.state, "green"), f"  job {outcome.job}"))
    result = outcome.result or {}
    special = SHOWN.get(outcome.kind)
    if "vectors" in result:
        _show_vectors(console, result)
    elif special is not None:
        special(console, result)
    else:
        rows = ((name, value) for name, value in result.items() if not isinstance(value, list))
        console.print(table(("", ""), rows))


def _show_generation(console: Console, result: Mapping[str, Any]) -> None:
    """The answer, and what it rests on."""
    console.print(Padding(Text(str(result["text"])), (0, 0, 0, 2)))
    usage = result.get("usage") or {}
    told = [f"{usage[name]} {name.replace('_', ' ')}" for name in usage if usage[name] is not None]
    if result.get("finish_reason") != "stop":
        told.append(f"ended by {result.get('finish_reason')}")
    console.print(Text(", ".join(told), style="dim"))
    for row in result.get("citations") or ():
        names = ("owner", "source", "date", "document")
        title = " ".join(str(row[name]) for name in names if row[name])
        text = " ".join(str(row["text"]).split())
        console.print(
            Text.assemble((f"[{row['passage']}] {title}  ", "cyan"), text[:PASSAGE_SHOWN])
        )


def _show_vectors(console: Console, result: dict[str, Any]) -> None:
    console.print(Text(f"space {result.get('space')}"))
    rows = []
    for number, vector in enumerate(result["vectors"]):
        head = ", ".join(f"{value:+.4f}" for value in vector[:VECTOR_SHOWN])
        rows.append((number, len(vector), f"{head}, …"))
    console.print(table(("#text", "#dimension", "vector"), rows))


# How results of classification and reranking are shown to a person.

OTHERS_SHOWN: Final = 5
"""Labels that were not given, the likeliest first."""


def show_classification(console: Console, result: Mapping[str, Any]) -> None:
    """The labels that were given, and dimly what else was likely."""
    given = [str(row["label"]) for row in result["labels"]]
    if result["abstained"]:
        console.print(Text("no label: none reached the threshold", style="yellow"))
    others = [row for row in result.get("scores", ()) if row["label"] not in given]
    rows = [
        *((_label(row, "bold green"), row["score"]) for row in result["labels"]),
        *((_label(row, "dim"), row["score"]) for row in others[:OTHERS_SHOWN]),
    ]
    if rows:
        console.print(table(("label", "#score"), rows))
    if result.get("normalised"):
        console.print(Text(f"usual form: {printable(result['normalised'])}"))


def show_rerank(console: Console, result: Mapping[str, Any]) -> None:
    """Places in the job's list, from 0, best first."""
    rows = [
        (rank, row["index"], f"{row['score']:.4f}") for rank, row in enumerate(result["ranking"], 1)
    ]
    console.print(table(("#", "#passage", "#score"), rows))


def _label(row: Mapping[str, Any], style: str) -> Text:
    return Text(printable(str(row["label"])), style=style)


# What was read from a file, as a person is shown it.

COLUMNS = ("#page", "read from", "#confidence", "#words", "turned", "error")


def show_ocr(console: Console, result: Mapping[str, Any]) -> None:
    """The text; before it a line for each page, unless there is one page and nothing to say of it.

    Args:
        console: where to.
        result: the job's, as JSON.
    """
    read = OcrResult.from_json(result)
    if len(read.pages) > 1 or any(page.error for page in read.pages):
        console.print(table(COLUMNS, map(_row, read.pages)))
        failed = sum(page.error is not None for page in read.pages)
        if failed:
            told = f"{failed} of {len(read.pages)} pages could not be read."
            console.print(Text(told, style="yellow"))
        console.print()
    elif read.pages:
        page = read.pages[0]
        sure = "" if page.confidence is None else f", confidence {page.confidence:.0%}"
        console.print(Text(f"{_source(page)}{sure}{_turned(page, ', turned ')}", style="dim"))
    if read.text:
        console.print(Text("\n".join(map(printable, read.text.splitlines()))), soft_wrap=True)
    else:
        console.print(Text("There is no text on it.", style="dim"))


def _row(page: OcrPage) -> tuple[object, ...]:
    if page.error is not None:
        return page.page, None, None, None, None, Text(page.error[1], style="red")
    sure = None if page.confidence is None else f"{page.confidence:.0%}"
    return page.page, _source(page), sure, len(page.text.split()), _turned(page) or None, None


def _source(page: OcrPage) -> str:
    return "text layer" if page.source == "text-layer" else "image"


def _turned(page: OcrPage, before: str = "") -> str:
    turn = page.rotation + page.skew
    return f"{before}{turn:g}°" if turn else ""


SHOWN: Mapping[str, Callable[[Console, Mapping[str, Any]], None]] = {
    "classification": show_classification,
    "generation": _show_generation,
    "ocr": show_ocr,
    "rerank": show_rerank,
}
"""How a kind's result is shown to a person."""
