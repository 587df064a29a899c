"""What is enqueued: sorts of jobs, each with the ends that are promised for it. A kind adds its own.

A sort says how its n-th job is made and in which states it may end. What is poison must be `dead`,
within its attempts; everybody else `succeeded`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tests.job_helpers import RawPayload
from tests.page_files import pdf, text_page
from vestry import Classification, Document, Embedding, Generation, Ocr, Rerank
from vestry.jobs.base import JobRequest

GOOD: Final = ("succeeded",)
OVERTAKEN: Final = ("succeeded", "superseded")
STOPPED: Final = ("succeeded", "cancelled")
DEAD: Final = ("dead",)
LABELS: Final = ("work", "rest")


@dataclass(frozen=True, slots=True)
class Sort:
    """One sort of job.

    Attributes:
        make: the n-th of them.
        ends: how it may end.
        codes: with which error codes, where it is dead.
        weight: how often, among 1000 transactions.
        innocents: how many of the harmless are enqueued around it, in one transaction.
    """

    name: str
    make: Callable[[int], JobRequest]
    ends: tuple[str, ...] = GOOD
    codes: tuple[str, ...] = ()
    weight: int = 0
    innocents: int = 0

    @property
    def poison(self) -> bool:
        """Whether it must die."""
        return self.ends == DEAD


def _texts(text: str) -> Callable[[int], JobRequest]:
    return lambda n: Embedding(texts=[f"{text} {n}"])


INNOCENT: Final = Sort("innocent", _texts("a quiet day at the office"), weight=800)
SLOW: Final = Sort("takes its time", _texts("echo!sleep=0.2 is slow"), weight=40)
"""Harmless, too: long enough in work for somebody else to come by."""
POISON: Final = (
    Sort("raises", _texts("echo!raise and again"), DEAD, ("handler_error",), innocents=12),
    Sort("exits", _texts("echo!exit at once"), DEAD, ("crashed",), innocents=12),
    Sort("segfaults", _texts("echo!segfault at once"), DEAD, ("crashed",), innocents=12),
    Sort(
        "takes all memory",
        _texts("echo!memory=2048 and more"),
        DEAD,
        ("handler_error", "crashed"),
        innocents=8,
    ),
    # A process that hangs may also be killed before its time is over.
    Sort("hangs", _texts("echo!sleep=600 for ever"), DEAD, ("timed_out", "crashed"), innocents=4),
)
"""Jobs that harm the process that runs them: so many of each as is asked for."""
FAULTY: Final = (
    Sort("spoils its vector", _texts("echo!nan in it"), DEAD, ("bad_vector",), 10, 6),
    Sort("is too long", _texts("word " * 900), DEAD, ("too_long",), 10, 6),
    Sort("is refused", _texts("echo!refused by it"), DEAD, ("backend_refused",), 10, 6),
    Sort("makes no sense", lambda _: RawPayload(b'{"texts": 1}'), DEAD, ("bad_payload",), 10, 6),
)
"""Jobs that fail by themselves."""
PAGE: Final = pdf(text_page("A quiet day at the office."))
KINDS: Final = (
    Sort("is classified", lambda n: Classification(f"a quiet day {n}", LABELS), weight=100),
    Sort("is answered", lambda n: Generation(f"How was day {n}?", max_tokens=8), weight=100),
    Sort("is reranked", lambda n: Rerank("a quiet day", [f"day {n}", "a storm"]), weight=100),
    Sort("is read", lambda _: Ocr(PAGE), weight=100),
)
"""Harmless jobs of the other kinds, for workers that have handlers for them."""
ALL: Final = {sort.name: sort for sort in (INNOCENT, SLOW, *POISON, *FAULTY, *KINDS)}

BAD_ENQUEUES: Final[tuple[Callable[[], JobRequest], ...]] = (
    lambda: Embedding(texts=[""]),
    lambda: Embedding(texts=["a\0b"]),
    lambda: Embedding(texts=["\ud800"]),
    lambda: Embedding(texts=[]),
    lambda: Embedding(texts="not a list"),
    lambda: Embedding(documents=[Document("x")]),
    lambda: Embedding(documents=[Document("x", id="1"), Document("y", id="1")], source="s"),
    lambda: Embedding(documents=[Document("x", metadata={"a": float("nan")})], source="s"),
    lambda: Embedding(texts=["x"], source="s"),
    lambda: Embedding(texts=["x" * 2_000_000]),
)
"""What must be refused before it is a job."""
