"""Enqueue documents and wait for their jobs to end, in bounded memory.

Documents are enqueued some hundred per transaction while earlier ones run; at most IN_FLIGHT are
unfinished at a time. Each job has an idempotency key: a transaction whose COMMIT result is unknown is
repeated without enqueueing a job twice.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar
from uuid import UUID

from vestry.cli.index.progress import ProgressMeter
from vestry.cli.index.reader import BadLine, Line, Record
from vestry.errors import Unavailable
from vestry.jobs.embedding import Document, IndexResult

BATCH_BYTES: Final = 128 * 1024
"""Payload of one job, unless a single document is larger: about two seconds' work on two cores."""

TRANSACTION_DOCUMENTS: Final = 256
"""Documents enqueued by one transaction."""

IN_FLIGHT: Final = 8192
"""Documents enqueued and not finished."""

FEW_JOBS: Final = 64
POLL_FEW_S: Final = 0.25
"""Poll interval for up to FEW_JOBS pending jobs."""
POLL_S: Final = 1.0
"""Poll interval for more pending jobs; a poll is one query over all of them."""

RECONNECT_TIMEOUT_S: Final = 120.0
"""The run fails if the database is unreachable for longer."""

STALL_S: Final = 30.0
"""Without a finished job for so long, the run prints why none of its jobs runs."""

FAILURES_KEPT: Final = 1000
"""Failed lines listed in the JSON summary; all are counted, and reported on stderr."""


@dataclass(frozen=True, slots=True)
class LineRef:
    """A line of a file."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class DocumentBatch:
    """The documents of one job, the lines they come from, and the job's idempotency key."""

    documents: tuple[Document, ...]
    lines: tuple[LineRef, ...]
    key: str


@dataclass(frozen=True, slots=True)
class EndedJob:
    """How a job ended; `result` is set if it succeeded and the result is still kept."""

    state: str
    error: tuple[str, str] | None
    result: IndexResult | None


class IndexQueue(Protocol):
    """The operations of the producer library that an index run uses."""

    def enqueue(self, batches: Sequence[DocumentBatch]) -> Sequence[UUID]:
        """Enqueue a job per batch in one transaction; a repeated key returns the first job."""
        ...

    def ended(self, jobs: Collection[UUID]) -> Mapping[UUID, EndedJob]:
        """The finished ones of the jobs, by id."""
        ...

    def stall_reason(self) -> str | None:
        """A sentence that says why no job runs; None if one runs."""
        ...


@dataclass(slots=True)
class IndexSummary:
    """Counts of a run. Each document (a line read) ends as embedded, unchanged, superseded or failed.

    Attributes:
        report: prints a failed line.
        chunks: chunks of the embedded documents.
        done: documents with an end.
    """

    report: Callable[[str], None]
    documents: int = 0
    chunks: int = 0
    embedded: int = 0
    unchanged: int = 0
    superseded: int = 0
    failed: int = 0
    done: int = 0
    space: str | None = None
    failures: list[dict[str, Any]] = field(default_factory=list)

    def add_failure(self, line: LineRef, code: str, message: str) -> None:
        """Count and report a line that could not be indexed."""
        self.failed += 1
        if len(self.failures) < FAILURES_KEPT:
            self.failures.append(
                {"file": line.file, "line": line.line, "code": code, "message": message}
            )
        self.report(f"{line}: {message}")

    def add_job(self, batch: DocumentBatch, ended: EndedJob) -> None:
        """Count the documents of a finished job."""
        self.done += len(batch.lines)
        if (result := ended.result) is not None:
            self.chunks += result.chunks
            self.embedded += result.embedded
            self.unchanged += result.unchanged
            self.superseded += result.superseded
            self.space = result.space or self.space
            for row in result.failed:
                self.add_failure(batch.lines[row.index], row.code, row.message)
        elif ended.state == "superseded":
            self.superseded += len(batch.lines)
        else:
            code, message = ended.error or (ended.state, f"its job is {ended.state}")
            for line in batch.lines:
                self.add_failure(line, code, message)

    def document(self) -> dict[str, Any]:
        """The JSON summary."""
        names = ("documents", "chunks", "embedded", "unchanged", "superseded", "failed", "space")
        return {name: getattr(self, name) for name in names} | {"failures": self.failures}


def make_batches(
    lines: Iterable[tuple[str, Line]], summary: IndexSummary, size: int, limit: int = BATCH_BYTES
) -> Iterator[DocumentBatch]:
    """Group documents into jobs; count the other lines.

    Args:
        lines: file name and line.
        summary: where every line is counted, and finished if it needs no job.
        size: most documents of a job.
        limit: most bytes of a job's documents together, unless there is only one.
    """
    run, number = uuid.uuid4().hex, 0
    documents: list[Document] = []
    line_refs: list[LineRef] = []
    batch_bytes = 0

    def batch() -> DocumentBatch:
        return DocumentBatch(tuple(documents), tuple(line_refs), f"vestry-index:{run}:{number}")

    for file, line in lines:
        summary.documents += 1
        if not isinstance(line, Record):
            summary.done += 1
            if isinstance(line, BadLine):
                summary.add_failure(LineRef(file, line.line), "invalid_input", line.reason)
            else:
                summary.unchanged += 1
            continue
        if documents and (len(documents) >= size or batch_bytes + line.size > limit):
            yield batch()
            documents.clear()
            line_refs.clear()
            batch_bytes, number = 0, number + 1
        documents.append(line.document)
        line_refs.append(LineRef(file, line.line))
        batch_bytes += line.size
    if documents:
        yield batch()


_T = TypeVar("_T")


class IndexRun:
    """One run of `vestry index`.

    Attributes:
        pending: the unfinished jobs, each with its batch's lines; the documents are not kept.
    """

    def __init__(
        self,
        queue: IndexQueue,
        summary: IndexSummary,
        meter: ProgressMeter,
        note: Callable[[str], None],
    ) -> None:
        self.pending: dict[UUID, DocumentBatch] = {}
        self._queue = queue
        self._summary = summary
        self._meter = meter
        self._note = note
        self._in_flight = 0
        self._polled_at = 0.0

    def run(self, batches: Iterator[DocumentBatch], total: int | None) -> None:
        """Enqueue every batch and return once every job is finished.

        Args:
            batches: the jobs to enqueue.
            total: number of documents for the meter; None if unknown.

        Raises:
            Unavailable: the database was unreachable for longer than RECONNECT_TIMEOUT_S.
        """
        reading = True
        progress_at, last_reason = time.monotonic(), ""
        self._meter.show(0, total)
        while reading or self.pending:
            if reading and self._in_flight < IN_FLIGHT:
                reading = self._enqueue_next(batches)
                total = total if reading else self._summary.documents
            done_before = self._summary.done
            self._poll(may_wait=not reading or self._in_flight >= IN_FLIGHT)
            self._meter.show(self._summary.done, total)
            if self._summary.done > done_before or reading:
                progress_at = time.monotonic()
            elif time.monotonic() - progress_at > STALL_S:
                progress_at = time.monotonic()
                reason = self._retry_unavailable(self._queue.stall_reason)
                if reason is not None and reason != last_reason:
                    last_reason = reason
                    self._note(reason)

    def _enqueue_next(self, batches: Iterator[DocumentBatch]) -> bool:
        """Enqueue the batches of one transaction; False if there are none."""
        group: list[DocumentBatch] = []
        count = 0
        for batch in batches:
            group.append(batch)
            count += len(batch.documents)
            if count >= TRANSACTION_DOCUMENTS:
                break
        if not group:
            return False
        jobs = self._retry_unavailable(lambda: self._queue.enqueue(group))
        for job, batch in zip(jobs, group, strict=True):
            self.pending[job] = DocumentBatch((), batch.lines, batch.key)
        self._in_flight += count
        return True

    def _poll(self, *, may_wait: bool) -> None:
        """Count the jobs that finished, at most once per poll interval."""
        interval = POLL_FEW_S if len(self.pending) <= FEW_JOBS else POLL_S
        wait_s = self._polled_at + interval - time.monotonic()
        if wait_s > 0:
            if not may_wait:
                return
            time.sleep(wait_s)
        ended = self._retry_unavailable(lambda: self._queue.ended(self.pending.keys()))
        self._polled_at = time.monotonic()
        for job, end in ended.items():
            batch = self.pending.pop(job)
            self._in_flight -= len(batch.lines)
            self._summary.add_job(batch, end)

    def _retry_unavailable(self, call: Callable[[], _T]) -> _T:
        """Repeat a call until the database is reachable, at most for RECONNECT_TIMEOUT_S."""
        deadline = time.monotonic() + RECONNECT_TIMEOUT_S
        noted = False
        while True:
            try:
                return call()
            except Unavailable:
                if time.monotonic() > deadline:
                    raise
            if not noted:
                self._note("The database cannot be reached; retrying.")
                noted = True
            time.sleep(POLL_S)
