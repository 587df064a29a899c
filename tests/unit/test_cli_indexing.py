"""An index run over a queue that answers as told: every line is accounted for, memory is bounded."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self
from uuid import UUID, uuid4

import pytest

from vestry.cli.index import run as index_run
from vestry.cli.index.reader import BadLine, Line, Record, RepeatedLine
from vestry.cli.index.run import DocumentBatch, EndedJob, IndexRun, IndexSummary, batches
from vestry.errors import Unavailable
from vestry.jobs.embedding import Document, FailedDocument, IndexResult


class Silent:
    """A meter that remembers what it was shown."""

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
    """Ends every job by `how`, at the first look; loses connections as told."""

    def __init__(self, how: EndedJob | None = None, losses: int = 0) -> None:
        self.how = how
        self.losses = losses
        self.jobs: dict[UUID, DocumentBatch] = {}
        self.by_key: dict[str, UUID] = {}
        self.transactions: list[int] = []
        self.most_in_flight = 0
        self.looks = 0

    def enqueue(self, batches: Sequence[DocumentBatch]) -> Sequence[UUID]:
        self.transactions.append(sum(len(batch.documents) for batch in batches))
        ids = [self.by_key.setdefault(batch.key, uuid4()) for batch in batches]
        self.jobs.update(zip(ids, batches, strict=True))
        self.lose()
        return ids

    def ended(self, jobs: Collection[UUID]) -> Mapping[UUID, EndedJob]:
        self.looks += 1
        self.lose()
        self.most_in_flight = max(
            self.most_in_flight, sum(len(self.jobs[job].places) for job in jobs)
        )
        return {job: self.how or self.embedded(len(self.jobs[job].places)) for job in jobs}

    def stall_reason(self) -> str | None:
        return "the lane is paused"

    def embedded(self, many: int) -> EndedJob:
        return EndedJob("succeeded", None, IndexResult(many, 2 * many, many, 0, 0, (), "s"))

    def lose(self) -> None:
        if self.losses:
            self.losses -= 1
            raise Unavailable


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_run, "POLL_S", 0.001)
    monkeypatch.setattr(index_run, "POLL_FEW_S", 0.001)


def records(many: int, size: int = 100) -> Iterator[tuple[str, Line]]:
    for line in range(1, many + 1):
        yield "a.jsonl", Record(line, Document(f"text {line}"), size)


def run(queue: FakeQueue, lines: Iterator[tuple[str, Line]], size: int = 10) -> IndexSummary:
    tally = IndexSummary(lambda _: None)
    IndexRun(queue, tally, Silent(), lambda _: None).run(batches(lines, tally, size), None)
    return tally


def test_every_document_is_counted_once() -> None:
    tally = run(FakeQueue(), records(1003))
    assert (tally.documents, tally.done, tally.embedded, tally.failed) == (1003, 1003, 1003, 0)
    assert tally.chunks == 2006
    assert tally.space == "s"


def test_lines_that_need_no_job_are_counted_and_do_not_stop_the_others() -> None:
    lines: list[tuple[str, Line]] = [
        ("a", Record(1, Document("x"), 10)),
        ("a", BadLine(2, "text: is empty")),
        ("a", RepeatedLine(3)),
        ("a", Record(4, Document("y"), 10)),
    ]
    tally = run(FakeQueue(), iter(lines))
    assert (tally.documents, tally.done, tally.failed, tally.unchanged) == (4, 4, 1, 1)
    assert tally.embedded == 2
    assert tally.failures == [
        {"file": "a", "line": 2, "code": "invalid_input", "message": "text: is empty"}
    ]


def test_a_document_that_failed_is_named_by_its_line() -> None:
    failed = FailedDocument(1, "too_long", "it is too long")
    how = EndedJob("succeeded", None, IndexResult(3, 2, 2, 0, 0, (failed,), "s"))
    lines: list[tuple[str, Line]] = [
        ("a", Record(1, Document("x"), 10)),
        ("a", BadLine(2, "bad")),
        ("b", Record(7, Document("y"), 10)),
        ("b", Record(8, Document("z"), 10)),
    ]
    tally = run(FakeQueue(how), iter(lines))
    assert [(f["file"], f["line"]) for f in tally.failures] == [("a", 2), ("b", 7)]


@pytest.mark.parametrize("state", ["dead", "cancelled", "expired"])
def test_a_job_without_a_result_fails_each_of_its_lines(state: str) -> None:
    tally = run(FakeQueue(EndedJob(state, ("no_model", "there is no model"), None)), records(5))
    assert tally.failed == 5
    assert [row["line"] for row in tally.failures] == [1, 2, 3, 4, 5]
    assert {row["code"] for row in tally.failures} == {"no_model"}


def test_a_superseded_job_is_no_failure() -> None:
    tally = run(FakeQueue(EndedJob("superseded", None, None)), records(5))
    assert (tally.superseded, tally.failed) == (5, 0)


def test_jobs_are_bounded_by_number_and_by_bytes() -> None:
    tally = IndexSummary(lambda _: None)
    by_number = list(batches(records(25), tally, 10))
    assert [len(batch.documents) for batch in by_number] == [10, 10, 5]
    by_bytes = list(batches(records(5, size=60), tally, 10, limit=150))
    assert [len(batch.documents) for batch in by_bytes] == [2, 2, 1]
    large = list(batches(records(3, size=500), tally, 10, limit=150))
    assert [len(batch.documents) for batch in large] == [1, 1, 1]


def test_transactions_hold_some_hundred_documents_and_the_queue_a_bounded_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(index_run, "IN_FLIGHT", 1000)
    queue = FakeQueue()
    tally = run(queue, records(5000))
    assert tally.done == 5000
    assert max(queue.transactions) < index_run.TRANSACTION_DOCUMENTS + 10
    assert queue.most_in_flight < 1000 + index_run.TRANSACTION_DOCUMENTS + 10


def test_a_commit_whose_answer_was_lost_enqueues_nothing_twice() -> None:
    queue = FakeQueue(losses=2)
    tally = run(queue, records(100))
    assert len(queue.jobs) == 10
    assert (tally.done, tally.embedded) == (100, 100)


def test_a_database_that_stays_away_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_run, "RECONNECT_TIMEOUT_S", 0.05)
    with pytest.raises(Unavailable):
        run(FakeQueue(losses=10**9), records(1))


def test_two_runs_never_share_a_key() -> None:
    tally = IndexSummary(lambda _: None)
    keys = {batch.key for _ in range(2) for batch in batches(records(20), tally, 5)}
    assert len(keys) == 8


def test_texts_are_let_go_once_they_are_enqueued() -> None:
    class Never(FakeQueue):
        def ended(self, jobs: Collection[UUID]) -> Mapping[UUID, EndedJob]:  # noqa: ARG002
            if self.looks:
                raise KeyboardInterrupt
            self.looks += 1
            return {}

    tally = IndexSummary(lambda _: None)
    index = IndexRun(Never(), tally, Silent(), lambda _: None)
    with pytest.raises(KeyboardInterrupt):
        index.run(batches(records(30), tally, 10), None)
    assert len(index.pending) == 3
    assert all(batch.documents == () for batch in index.pending.values())


def test_the_meter_ends_at_the_whole() -> None:
    meter, tally = Silent(), IndexSummary(lambda _: None)
    IndexRun(FakeQueue(), tally, meter, lambda _: None).run(batches(records(42), tally, 10), None)
    assert meter.shown[-1] == (42, 42)


def test_a_run_that_does_not_move_says_why_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck(FakeQueue):
        def ended(self, jobs: Collection[UUID]) -> Mapping[UUID, EndedJob]:
            self.looks += 1
            return super().ended(jobs) if self.looks > 60 else {}

    monkeypatch.setattr(index_run, "STALL_S", 0.005)
    told: list[str] = []
    tally = IndexSummary(lambda _: None)
    IndexRun(Stuck(), tally, Silent(), told.append).run(batches(records(3), tally, 10), None)
    assert told == ["the lane is paused"]
    assert tally.done == 3
