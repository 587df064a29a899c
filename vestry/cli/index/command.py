"""`vestry index`: index the documents of files, and wait until all are finished."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, BinaryIO, Final
from uuid import UUID

import typer
from rich.console import Console
from rich.text import Text

from vestry.cli.connections import open_client, transaction
from vestry.cli.errors import CommandError, ExitCode
from vestry.cli.index.progress import progress_meter
from vestry.cli.index.reader import Line, NotDocumentsError, Reader, count_lines
from vestry.cli.index.run import DocumentBatch, EndedJob, IndexRun, IndexSummary, make_batches
from vestry.cli.options import JsonOption, ModelOption, OwnerOption, PrivacyOption
from vestry.cli.output import Output, duration
from vestry.client import Vestry
from vestry.errors import ResultGone
from vestry.jobs.embedding import Embedding, IndexResult
from vestry.jobs.results import JobStatus
from vestry.lanes import KINDS, Latency, Privacy
from vestry.validation import check_label, check_source

STDIN: Final = "-"
DEFAULT_BATCH: Final = 12
"""Documents per job: enough that a job's own cost is negligible, few enough that a lane's owners
alternate often."""
MAX_REPORTED_ERRORS: Final = 50
"""Failed lines reported one by one."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        "index",
        rich_help_panel="Search",
        epilog="Example: vestry index diary.jsonl --source diary --owner u17 --privacy private",
    )(index)


def index(
    *,
    files: Annotated[
        list[str], typer.Argument(metavar="FILE…", help="Files to read; - is standard input.")
    ],
    source: Annotated[
        str,
        typer.Option(
            help="Name of the collection, such as diary: a-z, 0-9, '.', '_', '-'. Stored "
            "unencrypted.",
            show_default=False,
        ),
    ],
    owner: OwnerOption,
    privacy: PrivacyOption,
    keep_text: Annotated[
        bool,
        typer.Option(
            "--keep-text/--no-keep-text",
            help="Keep the text, which search then prints, or only vectors and references.",
        ),
    ] = True,
    batch: Annotated[
        int, typer.Option("--batch", min=1, max=256, help="Most documents of one job.")
    ] = DEFAULT_BATCH,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Index documents, and wait until all are finished.

    A file holds JSON Lines, {"text", "id"?, "date"?, "metadata"?}, or lines of a reference and a
    text ("Ge1:1 In the beginning…", with the reference as id). Indexing a file again embeds only what
    changed; a document replaces the one with the same id. An invalid line is reported as FILE:LINE,
    the others are indexed, and the exit code is 1.
    """
    out = Output(as_json=as_json)
    check_source(source)
    check_label("owner", owner)
    inputs = [_InputFile(name) for name in files]
    for file in inputs:
        file.check()
    summary = IndexSummary(ErrorReporter(out).report)
    reader = Reader()
    started = time.monotonic()
    with open_client() as vestry:
        queue = _ProducerQueue(vestry, owner, privacy, source, model, keep_text=keep_text)
        with progress_meter(out.notes) as meter:
            run = IndexRun(queue, summary, meter, out.note)
            batches = make_batches(_read_lines(inputs, reader, out), summary, batch)
            try:
                run.run(batches, _total_lines(inputs))
            except KeyboardInterrupt:
                raise _interrupted(run, summary) from None
    if reader.ignored:
        names = ", ".join(sorted(map(repr, reader.ignored)))
        out.note(f'Ignored fields: {names}. Put fields to be kept into "metadata".', "yellow")
    seconds = time.monotonic() - started
    out.emit(
        summary.document() | {"seconds": round(seconds, 3)},
        lambda console: _print_summary(console, summary, seconds),
    )
    if summary.failed:
        raise typer.Exit(ExitCode.FAILED)


class _InputFile:
    """A file to read; opened once before anything is enqueued, so that a missing one is an error."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.regular = name != STDIN and Path(name).is_file()
        if name != STDIN:
            try:
                with self.open():
                    pass
            except OSError as error:
                problem = error.strerror or "cannot be read"
                raise CommandError("invalid_input", f"{name}: {problem}") from None

    def check(self) -> None:
        """Read a regular file's first lines, before documents of any file are enqueued."""
        if self.regular:
            with self.open() as stream:
                next(self.read(stream, Reader()), None)

    def read(self, stream: BinaryIO, reader: Reader) -> Iterator[Line]:
        try:
            yield from reader.read(stream)
        except NotDocumentsError as error:
            raise CommandError("invalid_input", f"{self.name}: {error}") from None

    @contextlib.contextmanager
    def open(self) -> Iterator[BinaryIO]:
        if self.name == STDIN:
            yield sys.stdin.buffer
        else:
            with Path(self.name).open("rb") as stream:
                yield stream


def _read_lines(
    inputs: Sequence[_InputFile], reader: Reader, out: Output
) -> Iterator[tuple[str, Line]]:
    for file in inputs:
        empty = True
        with file.open() as stream:
            for line in file.read(stream, reader):
                empty = False
                yield file.name, line
        if empty:
            name = "standard input" if file.name == STDIN else file.name
            out.note(f"Nothing to index in {name}.", "yellow")


def _total_lines(inputs: Sequence[_InputFile]) -> int | None:
    """Number of lines to read; None if an input is not a regular file."""
    if not all(file.regular for file in inputs):
        return None
    total = 0
    for file in inputs:
        with file.open() as stream:
            total += count_lines(stream)
    return total


class _ProducerQueue:
    """The index run's queue, on the producer library."""

    def __init__(
        self,
        vestry: Vestry,
        owner: str,
        privacy: Privacy,
        source: str,
        model: str | None,
        *,
        keep_text: bool,
    ) -> None:
        self._vestry = vestry
        self._owner = owner
        self._privacy = privacy
        self._source = source
        self._model = model
        self._keep_text = keep_text

    def enqueue(self, batches: Sequence[DocumentBatch]) -> Sequence[UUID]:
        """Enqueue a job per batch in one transaction; a repeated key returns the first job."""
        jobs = (
            Embedding(
                documents=batch.documents,
                source=self._source,
                model=self._model,
                keep_text=self._keep_text,
            )
            for batch in batches
        )
        with transaction() as conn:
            references = self._vestry.enqueue_many(
                conn,
                jobs,
                owner=self._owner,
                privacy=self._privacy,
                idempotency_keys=[batch.key for batch in batches],
            )
        return [reference.id for reference in references]

    def ended(self, jobs: Collection[UUID]) -> Mapping[UUID, EndedJob]:
        """The finished ones of the jobs, by id."""
        return {
            status.job: self._end_of(status)
            for status in self._vestry.statuses(jobs)
            if status.finished
        }

    def stall_reason(self) -> str | None:
        """A sentence that says why no job runs; None if one runs."""
        name = f"{self._privacy}.{Latency.BULK}.{KINDS[Embedding.kind]}"
        (lane,) = (lane for lane in self._vestry.lanes() if lane.lane == name)
        if lane.paused:
            return f"The lane {name} is paused; `vestry lanes resume {name}` resumes it."
        if not lane.running:
            return f"No worker runs jobs of the lane {name}; `vestry doctor` may show why."
        return None

    def _end_of(self, status: JobStatus) -> EndedJob:
        if status.state != "succeeded":
            return EndedJob(status.state, status.error, None)
        try:
            result = self._vestry.result(status.job)
        except ResultGone as gone:
            return EndedJob(status.state, ("result_gone", str(gone)), None)
        return EndedJob(status.state, None, result if isinstance(result, IndexResult) else None)


class ErrorReporter:
    """Prints failed lines on stderr, at most MAX_REPORTED_ERRORS."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._reported = 0

    def report(self, message: str) -> None:
        """Print a failed line, or once that more follow."""
        self._reported += 1
        if self._reported <= MAX_REPORTED_ERRORS:
            self._out.note(message, "red")
        elif self._reported == MAX_REPORTED_ERRORS + 1:
            self._out.note("… and more; --json lists them", "red")


def _interrupted(run: IndexRun, summary: IndexSummary) -> CommandError:
    documents = sum(len(batch.lines) for batch in run.pending.values())
    return CommandError(
        "interrupted",
        f"Interrupted. {documents} documents in {len(run.pending)} jobs are enqueued and will be "
        "indexed; `vestry status` shows them. To index the others, run the same command again: no "
        "document is embedded twice.",
        ExitCode.INTERRUPTED,
        jobs=len(run.pending),
        **summary.document(),
    )


def _print_summary(console: Console, summary: IndexSummary, seconds: float) -> None:
    line = Text(f"{summary.documents:,} documents in {duration(seconds)}: ")
    line.append(f"{summary.embedded:,} embedded ({summary.chunks:,} chunks), ")
    line.append(f"{summary.unchanged:,} unchanged")
    if summary.superseded:
        line.append(f", {summary.superseded:,} superseded by a later run", style="yellow")
    if summary.failed:
        line.append(f", {summary.failed:,} failed", style="bold red")
    console.print(line)
