"""`vestry index`: files to documents, chunks and vectors."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, BinaryIO
from uuid import UUID

import typer
from rich.console import Console
from rich.text import Text

from vestry.cli.connections import open_client, transaction
from vestry.cli.errors import CommandError, ExitCode
from vestry.cli.index.progress import meter
from vestry.cli.index.reader import Line, NotDocumentsError, Reader, count_lines
from vestry.cli.index.run import DocumentBatch, EndedJob, IndexRun, IndexSummary, batches
from vestry.cli.options import JsonOption, ModelOption, OwnerOption, PrivacyOption
from vestry.cli.output import Output, duration
from vestry.client import Vestry
from vestry.errors import ResultGone
from vestry.jobs.embedding import Embedding, IndexResult
from vestry.jobs.results import JobStatus
from vestry.lanes import KINDS, Latency, Privacy
from vestry.validation import check_label, check_source

STDIN = "-"
DEFAULT_BATCH = 12
"""Documents of one job: enough that a job's own cost vanishes, few enough that a share of the lane
goes round."""
MAX_REPORTED_ERRORS = 50
"""Failed lines told one by one."""


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
        list[str], typer.Argument(metavar="FILE…", help="Files to read; - for standard input.")
    ],
    source: Annotated[
        str,
        typer.Option(
            help="Name of the collection, such as diary: a-z, 0-9, '.', '_', '-'. In the clear.",
            show_default=False,
        ),
    ],
    owner: OwnerOption,
    privacy: PrivacyOption,
    keep_text: Annotated[
        bool,
        typer.Option(
            "--keep-text/--no-keep-text",
            help="Keep the text for hits, or vectors and references only.",
        ),
    ] = True,
    batch: Annotated[
        int, typer.Option("--batch", min=1, max=256, help="Documents of one job, at most.")
    ] = DEFAULT_BATCH,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Index documents, and follow the work to its end.

    A file holds JSON Lines, {"text", "id"?, "date"?, "metadata"?}, or lines of a reference and a
    text ("Ge1:1 In the beginning…", whose id is the reference). Indexing it again embeds only what
    changed; an id that is there already is replaced. A line that cannot be used is reported as
    FILE:LINE, the others go on, and the exit code is 1.
    """
    out = Output(as_json=as_json)
    check_source(source)
    check_label("owner", owner)
    sources = [_Source(name) for name in files]
    for given in sources:
        given.check()
    teller = ErrorReporter(out)
    tally = IndexSummary(teller.failure)
    reader = Reader()
    began = time.monotonic()
    with open_client() as vestry:
        queue = _Jobs(vestry, owner, privacy, source, model, keep_text=keep_text)
        with meter(out.notes) as shown:
            run = IndexRun(queue, tally, shown, out.note)
            work = batches(_lines(sources, reader, out), tally, batch)
            try:
                run.run(work, _total(sources))
            except KeyboardInterrupt:
                raise _interrupted(run, tally) from None
    if reader.ignored:
        names = ", ".join(sorted(map(repr, reader.ignored)))
        out.note(f'Ignored fields: {names}. What is to be kept goes under "metadata".', "yellow")
    seconds = time.monotonic() - began
    out.emit(
        tally.document() | {"seconds": round(seconds, 3)},
        lambda console: _show(console, tally, seconds),
    )
    if tally.failed:
        raise typer.Exit(ExitCode.FAILED)


class _Source:
    """A file to read, checked before anything is enqueued."""

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
        """Look at a regular file's first lines, before anything of any file is enqueued."""
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


def _lines(sources: Sequence[_Source], reader: Reader, out: Output) -> Iterator[tuple[str, Line]]:
    for source in sources:
        empty = True
        with source.open() as stream:
            for line in source.read(stream, reader):
                empty = False
                yield source.name, line
        if empty:
            name = "standard input" if source.name == STDIN else source.name
            out.note(f"Nothing to index in {name}.", "yellow")


def _total(sources: Sequence[_Source]) -> int | None:
    """Lines to be read, where that can be told beforehand."""
    if not all(source.regular for source in sources):
        return None
    total = 0
    for source in sources:
        with source.open() as stream:
            total += count_lines(stream)
    return total


class _Jobs:
    """The producer library as an index uses it."""

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
        """Enqueue a job a batch in one transaction; the same key again is the same job."""
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
        """Those of the jobs that are at an end."""
        return {
            status.job: self._end(status)
            for status in self._vestry.statuses(jobs)
            if status.finished
        }

    def stall_reason(self) -> str | None:
        """Why nothing moves, for a person; None where something runs."""
        name = f"{self._privacy}.{Latency.BULK}.{KINDS[Embedding.kind]}"
        (lane,) = (lane for lane in self._vestry.lanes() if lane.lane == name)
        if lane.paused:
            return f"The lane {name} is paused: `vestry lanes resume {name}` goes on."
        if not lane.running:
            return f"No worker takes jobs from the lane {name}; see `vestry doctor`."
        return None

    def _end(self, status: JobStatus) -> EndedJob:
        if status.state != "succeeded":
            return EndedJob(status.state, status.error, None)
        try:
            result = self._vestry.result(status.job)
        except ResultGone as gone:
            return EndedJob(status.state, ("result_gone", str(gone)), None)
        return EndedJob(status.state, None, result if isinstance(result, IndexResult) else None)


class ErrorReporter:
    """Tells failed lines on stderr, up to a number."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._told = 0

    def failure(self, message: str) -> None:
        """Tell one, unless many were told."""
        self._told += 1
        if self._told <= MAX_REPORTED_ERRORS:
            self._out.note(message, "red")
        elif self._told == MAX_REPORTED_ERRORS + 1:
            self._out.note("… and more; --json lists them", "red")


def _interrupted(run: IndexRun, tally: IndexSummary) -> CommandError:
    waiting = sum(len(batch.places) for batch in run.pending.values())
    return CommandError(
        "interrupted",
        f"Interrupted. {waiting} documents in {len(run.pending)} jobs are with the queue and will "
        "be indexed all the same: `vestry status` shows them. For the rest, run the same command "
        "again; nothing is embedded twice.",
        ExitCode.INTERRUPTED,
        jobs=len(run.pending),
        **tally.document(),
    )


def _show(console: Console, tally: IndexSummary, seconds: float) -> None:
    line = Text(f"{tally.documents:,} documents in {duration(seconds)}: ")
    line.append(f"{tally.embedded:,} embedded ({tally.chunks:,} chunks), ")
    line.append(f"{tally.unchanged:,} unchanged")
    if tally.superseded:
        line.append(f", {tally.superseded:,} superseded by a later run", style="yellow")
    if tally.failed:
        line.append(f", {tally.failed:,} failed", style="bold red")
    console.print(line)
