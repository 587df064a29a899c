"""`vestry.cli.index.run` on a fake queue: every line is counted once, memory is bounded."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self
from uuid import UUID, uuid4

import pytest

from vestry.cli.index import run as index_run
from vestry.cli.index.reader import BadLine, Line, Record, RepeatedLine
from vestry.cli.index.run import DocumentBatch, EndedJob, IndexRun, IndexSummary, make_batches
from vestry.errors import Unavailable
from vestry.jobs.embedding import Document, FailedDocument, IndexResult


class FakeMeter:
    """Records the progress shown."""

    def __init__(self) -> None:
        self.shown: list[tuple[int, int | None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def show(self, done: int, total: int | None, doing: str = "") -> None:  # noqa: ARG002
        self.shown.append((done, total))


class FakeQueue:
    """Ends every job with `end` at the first poll; the first `failures` calls lose the connection."""

    def __init__(self, end: EndedJob | None = None, failures: int = 0) -> None:
        self.end = end
        self.failures = failures
        self.jobs: dict[UUID, DocumentBatch] = {}
        self.job_of_key: dict[str, UUID] = {}
        self.transactions: list[int] = []
        self.most_in_flight = 0
        self.polls = 0

    def enqueue(self, batches: Sequence[DocumentBatch]) -> Sequence[UUID]:
        self.transactions.append(sum(len(batch.documents) for batch in batches))
        ids = [self.job_of_key.setdefault(batch.key, uuid4()) for batch in batches]
        self.jobs.update(zip(ids, batches, strict=True))
        self.fail_once()
        return ids

    def ended(self, jobs: Collection[UUID]) -> Mapping[UUID, EndedJob]:
        self.polls += 1
        self.fail_once()
        self.most_in_flight = max(
            self.most_in_flight, sum(len(self.jobs[job].lines) for job in jobs)
        )
        return {job: self.end or self.embedded(len(self.jobs[job].lines)) for job in jobs}

    def stall_reason(self) -> str | None:
        return "the lane is paused"

    def embedded(self, count: int) -> EndedJob:
        return EndedJob("succeeded", None, IndexResult(count, 2 * count, count, 0, 0, (), "s"))

    def fail_once(self) -> None:
        if self.failures:
            self.failures -= 1
            raise Unavailable


@pytest.fixture(autouse=True)
def short_poll_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_run, "POLL_S", 0.001)
    monkeypatch.setattr(index_run, "POLL_FEW_S", 0.001)


def records(count: int, size: int = 100) -> Iterator[tuple[str, Line]]:
    for line in range(1, count + 1):
        yield "a.jsonl", Record(line, Document(f"text {line}"), size)


def run(queue: FakeQueue, lines: Iterator[tuple[str, Line]], size: int = 10) -> IndexSummary:
    summary = IndexSummary(lambda _: None)
    IndexRun(queue, summary, FakeMeter(), lambda _: None).run(
        make_batches(lines, summary, size), None
    )
    return summary


def test_index_run_counts_every_document_once() -> None:
    summary = run(FakeQueue(), records(1003))
    assert (summary.documents, summary.done, summary.embedded, summary.failed) == (
        1003,
        1003,
        1003,
        0,
    )
    assert summary.chunks == 2006
    assert summary.space == "s"


def test_index_run_counts_bad_and_repeated_lines_and_indexes_the_others() -> None:
    lines: list[tuple[str, Line]] = [
        ("a", Record(1, Document("x"), 10)),
        ("a", BadLine(2, "text: must not be empty")),
        ("a", RepeatedLine(3)),
        ("a", Record(4, Document("y"), 10)),
    ]
    summary = run(FakeQueue(), iter(lines))
    assert (summary.documents, summary.done, summary.failed, summary.unchanged) == (4, 4, 1, 1)
    assert summary.embedded == 2
    assert summary.failures == [
        {"file": "a", "line": 2, "code": "invalid_input", "message": "text: must not be empty"}
    ]


def test_failed_document_is_reported_by_file_and_line() -> None:
    failed = FailedDocument(1, "too_long", "it is too long")
    end = EndedJob("succeeded", None, IndexResult(3, 2, 2, 0, 0, (failed,), "s"))
    lines: list[tuple[str, Line]] = [
        ("a", Record(1, Document("x"), 10)),
        ("a", BadLine(2, "bad")),
        ("b", Record(7, Document("y"), 10)),
        ("b", Record(8, Document("z"), 10)),
    ]
    summary = run(FakeQueue(end), iter(lines))
    assert [(f["file"], f["line"]) for f in summary.failures] == [("a", 2), ("b", 7)]


@pytest.mark.parametrize("state", ["dead", "cancelled", "expired"])
def test_job_without_result_fails_each_of_its_lines(state: str) -> None:
    summary = run(FakeQueue(EndedJob(state, ("no_model", "there is no model"), None)), records(5))
    assert summary.failed == 5
    assert [row["line"] for row in summary.failures] == [1, 2, 3, 4, 5]
    assert {row["code"] for row in summary.failures} == {"no_model"}


def test_superseded_job_is_not_counted_as_failed() -> None:
    summary = run(FakeQueue(EndedJob("superseded", None, None)), records(5))
    assert (summary.superseded, summary.failed) == (5, 0)


def test_batches_are_bounded_by_documents_and_bytes() -> None:
    summary = IndexSummary(lambda _: None)
    by_number = list(make_batches(records(25), summary, 10))
    assert [len(batch.documents) for batch in by_number] == [10, 10, 5]
    by_bytes = list(make_batches(records(5, size=60), summary, 10, limit=150))
    assert [len(batch.documents) for batch in by_bytes] == [2, 2, 1]
    large = list(make_batches(records(3, size=500), summary, 10, limit=150))
    assert [len(batch.documents) for batch in large] == [1, 1, 1]


def test_index_run_bounds_documents_per_transaction_and_in_flight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(index_run, "IN_FLIGHT", 1000)
    queue = FakeQueue()
    summary = run(queue, records(5000))
    assert summary.done == 5000
    assert max(queue.transactions) < index_run.TRANSACTION_DOCUMENTS + 10
    assert queue.most_in_flight < 1000 + index_run.TRANSACTION_DOCUMENTS + 10


def test_enqueue_with_unknown_commit_result_is_repeated_without_duplicates() -> None:
    queue = FakeQueue(failures=2)
    summary = run(queue, records(100))
    assert len(queue.jobs) == 10
    assert (summary.done, summary.embedded) == (100, 100)


def test_index_run_fails_after_reconnect_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_run, "RECONNECT_TIMEOUT_S", 0.05)
    with pytest.raises(Unavailable):
        run(FakeQueue(failures=10**9), records(1))


def test_index_runs_use_distinct_idempotency_keys() -> None:
    summary = IndexSummary(lambda _: None)
    keys = {batch.key for _ in range(2) for batch in make_batches(records(20), summary, 5)}
    assert len(keys) == 8


def test_index_run_drops_documents_after_enqueue() -> None:
    class NeverEndingQueue(FakeQueue):
        def ended(self, jobs: Collection[UUID]) -> Mapping[UUID, EndedJob]:  # noqa: ARG002
            if self.polls:
                raise KeyboardInterrupt
            self.polls += 1
            return {}

    summary = IndexSummary(lambda _: None)
    index = IndexRun(NeverEndingQueue(), summary, FakeMeter(), lambda _: None)
    with pytest.raises(KeyboardInterrupt):
        index.run(make_batches(records(30), summary, 10), None)
    assert len(index.pending) == 3
    assert all(batch.documents == () for batch in index.pending.values())


def test_meter_ends_at_the_total() -> None:
    meter, summary = FakeMeter(), IndexSummary(lambda _: None)
    IndexRun(FakeQueue(), summary, meter, lambda _: None).run(
        make_batches(records(42), summary, 10), None
    )
    assert meter.shown[-1] == (42, 42)


def test_stalled_index_run_notes_the_reason_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class StalledQueue(FakeQueue):
        def ended(self, jobs: Collection[UUID]) -> Mapping[UUID, EndedJob]:
            self.polls += 1
            return super().ended(jobs) if self.polls > 60 else {}

    monkeypatch.setattr(index_run, "STALL_S", 0.005)
    notes: list[str] = []
    summary = IndexSummary(lambda _: None)
    IndexRun(StalledQueue(), summary, FakeMeter(), notes.append).run(
        make_batches(records(3), summary, 10), None
    )
    assert notes == ["the lane is paused"]
    assert summary.done == 3
