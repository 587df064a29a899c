"""Results of finished jobs: the JSON document, and each kind's result as text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import typer
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from vestry.cli.errors import ExitCode
from vestry.cli.output import Output, printable, table
from vestry.client import Vestry
from vestry.db.job_queries import JobLike
from vestry.errors import JobFailed, ResultGone
from vestry.jobs.ocr import OcrPage, OcrResult

VECTOR_SHOWN: Final = 4
"""Numbers of a vector that are printed."""
PASSAGE_SHOWN: Final = 200
"""Characters of a cited passage that are printed."""
REJECTED_SHOWN: Final = 5
"""Labels below the threshold that are printed, the likeliest first."""
OCR_COLUMNS: Final = ("#page", "read from", "#confidence", "#words", "rotated", "error")


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished job: its `result` if it succeeded, else its `error` as code and message."""

    job: str
    kind: str
    state: str
    result: dict[str, Any] | None
    error: tuple[str, str] | None

    def document(self) -> dict[str, Any]:
        """The JSON document; other programs rely on its keys."""
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
    """Read a job's outcome, with `wait` after waiting for its end.

    Raises:
        WaitTimeout: the job did not finish within `timeout` seconds.
        NotFinished: the job is not finished, and `wait` is False.
        UnknownJob: there is no such job.
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


def print_outcome(out: Output, outcome: Outcome) -> None:
    """Print an outcome; exit with code 1 if it has no result."""
    out.emit(outcome.document(), lambda console: _print_text(console, outcome))
    if outcome.error is not None:
        raise typer.Exit(ExitCode.FAILED)


def _print_text(console: Console, outcome: Outcome) -> None:
    if outcome.error is not None:
        code, message = outcome.error
        console.print(
            Text.assemble((outcome.state, "bold red"), f"  {code}: {message}  (job {outcome.job})")
        )
        return
    console.print(Text.assemble((outcome.state, "green"), f"  job {outcome.job}"))
    result = outcome.result or {}
    print_kind = _PRINTERS.get(outcome.kind)
    if "vectors" in result:
        _print_vectors(console, result)
    elif print_kind is not None:
        print_kind(console, result)
    else:
        rows = ((name, value) for name, value in result.items() if not isinstance(value, list))
        console.print(table(("", ""), rows))


def _print_vectors(console: Console, result: Mapping[str, Any]) -> None:
    console.print(Text(f"space {result.get('space')}"))
    rows = []
    for number, vector in enumerate(result["vectors"]):
        head = ", ".join(f"{value:+.4f}" for value in vector[:VECTOR_SHOWN])
        rows.append((number, len(vector), f"{head}, …"))
    console.print(table(("#text", "#dimension", "vector"), rows))


def _print_generation(console: Console, result: Mapping[str, Any]) -> None:
    """The text, its token counts, and the passages that it cites."""
    console.print(Padding(Text(str(result["text"])), (0, 0, 0, 2)))
    usage = result.get("usage") or {}
    notes = [f"{usage[name]} {name.replace('_', ' ')}" for name in usage if usage[name] is not None]
    if result.get("finish_reason") != "stop":
        notes.append(f"ended by {result.get('finish_reason')}")
    console.print(Text(", ".join(notes), style="dim"))
    for row in result.get("citations") or ():
        names = ("owner", "source", "date", "document")
        title = " ".join(str(row[name]) for name in names if row[name])
        text = " ".join(str(row["text"]).split())
        console.print(
            Text.assemble((f"[{row['passage']}] {title}  ", "cyan"), text[:PASSAGE_SHOWN])
        )


def print_classification(console: Console, result: Mapping[str, Any]) -> None:
    """The assigned labels, then the likeliest of the others."""
    assigned = [str(row["label"]) for row in result["labels"]]
    if result["abstained"]:
        console.print(Text("no label: none reached the threshold", style="yellow"))
    rejected = [row for row in result.get("scores", ()) if row["label"] not in assigned]
    rows = [
        *((_label_cell(row, "bold green"), row["score"]) for row in result["labels"]),
        *((_label_cell(row, "dim"), row["score"]) for row in rejected[:REJECTED_SHOWN]),
    ]
    if rows:
        console.print(table(("label", "#score"), rows))
    if result.get("normalised"):
        console.print(Text(f"usual form: {printable(result['normalised'])}"))


def _label_cell(row: Mapping[str, Any], style: str) -> Text:
    return Text(printable(str(row["label"])), style=style)


def print_ranking(console: Console, result: Mapping[str, Any]) -> None:
    """The passages' positions in the request, counted from 0, best first."""
    rows = [
        (rank, row["index"], f"{row['score']:.4f}") for rank, row in enumerate(result["ranking"], 1)
    ]
    console.print(table(("#", "#passage", "#score"), rows))


def print_ocr(console: Console, result: Mapping[str, Any]) -> None:
    """The text; before it a table of the pages, or one line if a single page was read."""
    read = OcrResult.from_json(result)
    if len(read.pages) > 1 or any(page.error for page in read.pages):
        console.print(table(OCR_COLUMNS, map(_page_row, read.pages)))
        failed = sum(page.error is not None for page in read.pages)
        if failed:
            message = f"{failed} of {len(read.pages)} pages could not be read."
            console.print(Text(message, style="yellow"))
        console.print()
    elif read.pages:
        page = read.pages[0]
        confidence = "" if page.confidence is None else f", confidence {page.confidence:.0%}"
        line = f"{_page_source(page)}{confidence}{_correction(page, ', rotated ')}"
        console.print(Text(line, style="dim"))
    if read.text:
        console.print(Text("\n".join(map(printable, read.text.splitlines()))), soft_wrap=True)
    else:
        console.print(Text("No text was found.", style="dim"))


def _page_row(page: OcrPage) -> tuple[object, ...]:
    if page.error is not None:
        return page.page, None, None, None, None, Text(page.error[1], style="red")
    confidence = None if page.confidence is None else f"{page.confidence:.0%}"
    words = len(page.text.split())
    return page.page, _page_source(page), confidence, words, _correction(page) or None, None


def _page_source(page: OcrPage) -> str:
    return "text layer" if page.source == "text-layer" else "image"


def _correction(page: OcrPage, prefix: str = "") -> str:
    """Degrees by which the page was rotated and deskewed; empty for none."""
    degrees = page.rotation + page.skew
    return f"{prefix}{degrees:g}°" if degrees else ""


_PRINTERS: Final[Mapping[str, Callable[[Console, Mapping[str, Any]], None]]] = {
    "classification": print_classification,
    "generation": _print_generation,
    "ocr": print_ocr,
    "rerank": print_ranking,
}
"""Printer of each kind's result; vectors and other kinds have none."""
