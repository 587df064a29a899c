"""Feed documents to the queue and follow their jobs to the end, in bounded memory.

Documents are enqueued some hundreds a transaction while earlier ones run, and no more are enqueued
than `IN_FLIGHT` until some are done. Each job has an idempotency key, so that a commit whose answer
was lost can be tried again without enqueueing anything twice.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar
from uuid import UUID

from vestry.cli.index.progress import Meter
from vestry.cli.index.reader import BadLine, Line, Record
from vestry.errors import Unavailable
from vestry.jobs.embedding import Document, IndexResult

BATCH_BYTES: Final = 128 * 1024
"""Payload of one job, unless a single document is larger: about two seconds' work on two cores."""

TRANSACTION_DOCUMENTS: Final = 256
"""Documents enqueued by one transaction."""

IN_FLIGHT: Final = 8192
"""Documents enqueued and not done."""

FEW_JOBS: Final = 64
POLL_FEW_S: Final = 0.25
POLL_S: Final = 1.0
"""Between two looks at the jobs' states, each one query over all of them."""

RECONNECT_TIMEOUT_S: Final = 120.0
"""How long the database may be away before the run gives up."""

STALL_S: Final = 30.0
"""Without a job done for so long, the person is told why, where nothing runs."""

FAILURES_KEPT: Final = 1000
"""Failed lines listed in the summary; all are counted, and all told on stderr."""


@dataclass(frozen=True, slots=True)
class LineRef:
    """A line of a file."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class DocumentBatch:
    """The documents of one job, the lines they come from, and its idempotency key."""

    documents: tuple[Document, ...]
    places: tuple[LineRef, ...]
    key: str


@dataclass(frozen=True, slots=True)
class EndedJob:
    """How a job ended; `result` where it succeeded and its result is still kept."""

    state: str
    error: tuple[str, str] | None
    result: IndexResult | None


class IndexQueue(Protocol):
    """What an index needs of the producer library."""

    def enqueue(self, batches: Sequence[DocumentBatch]) -> Sequence[UUID]:
        """Enqueue a job a batch in one transaction; the same key again is the same job."""
        ...

    def ended(self, jobs: Collection[UUID]) -> Mapping[UUID, EndedJob]:
        """Those of the jobs that are at an end."""
        ...

    def stall_reason(self) -> str | None:
        """Why nothing moves, for a person; None where something runs."""
        ...


@dataclass(slots=True)
class IndexSummary:
    """The summary: documents are lines read, each then embedded, unchanged, superseded or failed.

    `chunks` counts the pieces of the documents embedded.
    """

    tell: Callable[[str], None]
    documents: int = 0
    chunks: int = 0
    embedded: int = 0
    unchanged: int = 0
    superseded: int = 0
    failed: int = 0
    done: int = 0
    space: str | None = None
    failures: list[dict[str, Any]] = field(default_factory=list)

    def fail(self, place: LineRef, code: str, message: str) -> None:
        """Count a line that could not be indexed, and tell."""
        self.failed += 1
        if len(self.failures) < FAILURES_KEPT:
            self.failures.append(
                {"file": place.file, "line": place.line, "code": code, "message": message}
            )
        self.tell(f"{place}: {message}")

    def add(self, batch: DocumentBatch, ended: EndedJob) -> None:
        """Count a job that ended."""
        self.done += len(batch.places)
        if (result := ended.result) is not None:
            self.chunks += result.chunks
            self.embedded += result.embedded
            self.unchanged += result.unchanged
            self.superseded += result.superseded
            self.space = result.space or self.space
            for row in result.failed:
                self.fail(batch.places[row.index], row.code, row.message)
        elif ended.state == "superseded":
            self.superseded += len(batch.places)
        else:
            code, message = ended.error or (ended.state, f"its job is {ended.state}")
            for place in batch.places:
                self.fail(place, code, message)

    def document(self) -> dict[str, Any]:
        """The JSON summary."""
        names = ("documents", "chunks", "embedded", "unchanged", "superseded", "failed", "space")
        return {name: getattr(self, name) for name in names} | {"failures": self.failures}


def batches(
    lines: Iterable[tuple[str, Line]], tally: IndexSummary, size: int, limit: int = BATCH_BYTES
) -> Iterator[DocumentBatch]:
    """Gather good lines into jobs; count the others.

    Args:
        lines: file name and line.
        tally: where lines that need no job are counted.
        size: documents a job has at most.
        limit: bytes a job's documents have together, unless there is only one.
    """
    run, number = uuid.uuid4().hex, 0
    documents: list[Document] = []
    places: list[LineRef] = []
    weight = 0

    def batch() -> DocumentBatch:
        return DocumentBatch(tuple(documents), tuple(places), f"vestry-index:{run}:{number}")

    for file, line in lines:
        tally.documents += 1
        if not isinstance(line, Record):
            tally.done += 1
            if isinstance(line, BadLine):
                tally.fail(LineRef(file, line.line), "invalid_input", line.reason)
            else:
                tally.unchanged += 1
            continue
        if documents and (len(documents) >= size or weight + line.size > limit):
            yield batch()
            documents.clear()
            places.clear()
            weight, number = 0, number + 1
        documents.append(line.document)
        places.append(LineRef(file, line.line))
        weight += line.size
    if documents:
        yield batch()


_T = TypeVar("_T")


class IndexRun:
    """One run of `vestry index`.

    Attributes:
        pending: the jobs not at an end, each with its batch's places; its texts are let go.
    """

    def __init__(
        self, queue: IndexQueue, tally: IndexSummary, meter: Meter, tell: Callable[[str], None]
    ) -> None:
        self.pending: dict[UUID, DocumentBatch] = {}
        self._queue = queue
        self._tally = tally
        self._meter = meter
        self._tell = tell
        self._in_flight = 0
        self._polled = 0.0

    def run(self, work: Iterator[DocumentBatch], total: int | None) -> None:
        """Enqueue everything and return once every job is at an end.

        Args:
            work: the jobs to be.
            total: documents expected, where known; for the meter.

        Raises:
            Unavailable: the database was away for longer than PATIENCE_S.
        """
        reading = True
        moved, told = time.monotonic(), ""
        self._meter.show(0, total)
        while reading or self.pending:
            if reading and self._in_flight < IN_FLIGHT:
                reading = self._feed(work)
                total = total if reading else self._tally.documents
            before = self._tally.done
            self._poll(may_wait=not reading or self._in_flight >= IN_FLIGHT)
            self._meter.show(self._tally.done, total)
            if self._tally.done > before or reading:
                moved = time.monotonic()
            elif time.monotonic() - moved > STALL_S:
                moved = time.monotonic()
                why = self._patiently(self._queue.stall_reason)
                if why is not None and why != told:
                    told = why
                    self._tell(why)

    def _feed(self, work: Iterator[DocumentBatch]) -> bool:
        """Enqueue one transaction's worth; False once there is no more."""
        group: list[DocumentBatch] = []
        count = 0
        for batch in work:
            group.append(batch)
            count += len(batch.documents)
            if count >= TRANSACTION_DOCUMENTS:
                break
        if not group:
            return False
        jobs = self._patiently(lambda: self._queue.enqueue(group))
        for job, batch in zip(jobs, group, strict=True):
            self.pending[job] = DocumentBatch((), batch.places, batch.key)
        self._in_flight += count
        return True

    def _poll(self, *, may_wait: bool) -> None:
        """Count the jobs that ended, at most once in an interval."""
        interval = POLL_FEW_S if len(self.pending) <= FEW_JOBS else POLL_S
        left = self._polled + interval - time.monotonic()
        if left > 0:
            if not may_wait:
                return
            time.sleep(left)
        ended = self._patiently(lambda: self._queue.ended(self.pending.keys()))
        self._polled = time.monotonic()
        for job, how in ended.items():
            batch = self.pending.pop(job)
            self._in_flight -= len(batch.places)
            self._tally.add(batch, how)

    def _patiently(self, act: Callable[[], _T]) -> _T:
        """Do something in the database, again and again while it is away."""
        give_up = time.monotonic() + RECONNECT_TIMEOUT_S
        told = False
        while True:
            try:
                return act()
            except Unavailable:
                if time.monotonic() > give_up:
                    raise
            if not told:
                self._tell("The database is away; waiting for it.")
                told = True
            time.sleep(POLL_S)
