"""The jobs that producers enqueue: variants, each with the final states that are allowed for it.

A variant defines its n-th job and the states in which the job may end. Poison must be `dead` within
its attempts; all others must succeed.
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
SUPERSEDED: Final = ("succeeded", "superseded")
CANCELLED: Final = ("succeeded", "cancelled")
DEAD: Final = ("dead",)
LABELS: Final = ("work", "rest")


@dataclass(frozen=True, slots=True)
class Variant:
    """One variant of job.

    Attributes:
        make: makes the n-th of them.
        ends: the final states that are allowed.
        codes: the error codes that are allowed for a dead job.
        weight: relative frequency.
        neighbours: most harmless jobs in its transaction.
    """

    name: str
    make: Callable[[int], JobRequest]
    ends: tuple[str, ...] = GOOD
    codes: tuple[str, ...] = ()
    weight: int = 0
    neighbours: int = 0

    @property
    def poison(self) -> bool:
        """Whether it must become dead."""
        return self.ends == DEAD


def _texts(text: str) -> Callable[[int], JobRequest]:
    return lambda n: Embedding(texts=[f"{text} {n}"])


HARMLESS: Final = Variant("harmless", _texts("a quiet day at the office"), weight=800)
SLOW: Final = Variant("slow", _texts("echo!sleep=0.2 is slow"), weight=40)
"""Harmless too, and long enough for another process to interfere."""
POISON: Final = (
    Variant("raises", _texts("echo!raise and again"), DEAD, ("handler_error",), neighbours=12),
    Variant("exits", _texts("echo!exit at once"), DEAD, ("crashed",), neighbours=12),
    Variant("segfaults", _texts("echo!segfault at once"), DEAD, ("crashed",), neighbours=12),
    Variant(
        "takes all memory",
        _texts("echo!memory=2048 and more"),
        DEAD,
        ("handler_error", "crashed"),
        neighbours=8,
    ),
    # A process that hangs may also be killed before its timeout.
    Variant(
        "hangs", _texts("echo!sleep=600 for ever"), DEAD, ("timed_out", "crashed"), neighbours=4
    ),
)
"""Jobs that harm the process that runs them; a scale sets how often each occurs."""
FAULTY: Final = (
    Variant("spoils its vector", _texts("echo!nan in it"), DEAD, ("bad_vector",), 10, 6),
    Variant("is too long", _texts("word " * 900), DEAD, ("too_long",), 10, 6),
    Variant("is refused", _texts("echo!refused by it"), DEAD, ("backend_refused",), 10, 6),
    Variant("makes no sense", lambda _: RawPayload(b'{"texts": 1}'), DEAD, ("bad_payload",), 10, 6),
)
"""Jobs that fail without harm to others."""
PAGE: Final = pdf(text_page("A quiet day at the office."))
KINDS: Final = (
    Variant("is classified", lambda n: Classification(f"a quiet day {n}", LABELS), weight=100),
    Variant("is answered", lambda n: Generation(f"How was day {n}?", max_tokens=8), weight=100),
    Variant("is reranked", lambda n: Rerank("a quiet day", [f"day {n}", "a storm"]), weight=100),
    Variant("is read", lambda _: Ocr(PAGE), weight=100),
)
"""Harmless jobs of the other kinds, for workers that have handlers for them."""
ALL: Final = {variant.name: variant for variant in (HARMLESS, SLOW, *POISON, *FAULTY, *KINDS)}

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
"""Requests that must be refused before they are jobs."""
