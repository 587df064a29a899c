"""The texts of a batch of jobs, each embedded once, with faults kept to the texts they belong to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from uuid import UUID

import numpy as np

from inference.errors import BadRequest, BadVectors, InferenceError
from inference.protocol import EmbeddingModel, InputType
from inference.vectors import faulty_rows
from tasks.chunking import Chunker, Span

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from inference.protocol import Vectors


@dataclass(slots=True, eq=False)
class PendingVector:
    """One text's vector, or why there is none.

    With neither vector nor error, all jobs that wanted it were abandoned.
    """

    text: str = field(repr=False)
    tokens: int
    jobs: set[UUID] = field(default_factory=set)
    vector: NDArray[np.float32] | None = field(default=None, repr=False)
    error: InferenceError | None = None


class EmbeddingBatch:
    """Collects texts of many jobs, then embeds them together."""

    def __init__(self) -> None:
        self._wanted: dict[tuple[InputType, str], PendingVector] = {}
        self.backend_error: InferenceError | None = None
        """The last error that says something of the backend rather than of a text."""

    def request(self, job_id: UUID, text: str, tokens: int, input: InputType) -> PendingVector:  # noqa: A002
        """Ask for a text's vector; the same text asked for twice is embedded once."""
        wanted = self._wanted.setdefault((input, text), PendingVector(text, tokens))
        wanted.jobs.add(job_id)
        return wanted

    def embed(
        self, backend: EmbeddingModel, abandoned: Callable[[UUID], bool], *, urgent: bool
    ) -> None:
        """Fill in every vector or error. Raises only what is outside the errors' family.

        Args:
            backend: whose space the vectors are of.
            abandoned: asked for each job before each call; a text that no job wants any more is
                left out.
            urgent: as in `EmbeddingModel.embed`.
        """
        inputs: tuple[InputType, InputType] = ("query", "document")
        for kind in inputs:
            texts = [wanted for (way, _), wanted in self._wanted.items() if way == kind]
            for call in _calls(texts, backend.call_tokens):
                gone = {job for wanted in call for job in wanted.jobs if abandoned(job)}
                alive = [wanted for wanted in call if not wanted.jobs <= gone]
                self._fill(backend, alive, kind, urgent=urgent)

    def _fill(
        self,
        backend: EmbeddingModel,
        texts: list[PendingVector],
        input: InputType,  # noqa: A002
        *,
        urgent: bool,
    ) -> None:
        """Embed; on a fault of single texts, without them or half by half until they are found."""
        if not texts:
            return
        try:
            vectors = backend.embed([wanted.text for wanted in texts], input, urgent=urgent)
            faulty = set(faulty_rows(vectors, len(texts), backend.space.dimension))
        except InferenceError as error:
            if not error.per_text:
                self.backend_error = error
            if not error.per_text or len(texts) == 1:
                for wanted in texts:
                    wanted.error = error
                return
            blamed = set(error.indices)
            for place in blamed:
                texts[place].error = error
            rest = [wanted for place, wanted in enumerate(texts) if place not in blamed]
            parts = (rest,) if blamed else (rest[: len(rest) // 2], rest[len(rest) // 2 :])
            for part in parts:
                self._fill(backend, part, input, urgent=urgent)
            return
        _take(texts, vectors, faulty)


def _calls(texts: Sequence[PendingVector], budget: int) -> Iterator[list[PendingVector]]:
    """Cut by tokens, texts of like length together: the backend pads a batch to its longest."""
    call: list[PendingVector] = []
    tokens = 0
    for wanted in sorted(texts, key=lambda wanted: wanted.tokens, reverse=True):
        if call and tokens + wanted.tokens > budget:
            yield call
            call, tokens = [], 0
        call.append(wanted)
        tokens += wanted.tokens
    if call:
        yield call


def _take(texts: Sequence[PendingVector], vectors: Vectors, faulty: set[int]) -> None:
    for place, wanted in enumerate(texts):
        if place in faulty:
            wanted.error = BadVectors()
        else:
            wanted.vector = vectors[place]


# Texts of any length as one vector each: the mean of the pieces that fit the model.

if TYPE_CHECKING:
    from numpy.typing import NDArray

_DOCUMENT: Final = "document"


class LongTextEmbedder:
    """Asks a pool for the vectors of whole texts; each distinct text is cut once. For one batch.

    Args:
        chunker: of the model.
    """

    def __init__(self, chunker: Chunker) -> None:
        self._chunker = chunker
        self._spans: dict[str, list[Span]] = {}

    def request(self, pool: EmbeddingBatch, job_id: UUID, text: str) -> list[PendingVector]:
        """Ask for the vectors of a text's pieces.

        Raises:
            InferenceError: it cannot be cut.
        """
        spans = self._spans.get(text)
        if spans is None:
            (spans,) = self._chunker.split([text])
            self._spans[text] = spans
        if not spans:
            raise BadRequest("a text is only white space")
        return [pool.request(job_id, span.text, span.tokens, _DOCUMENT) for span in spans]


class Chunkers:
    """A chunker for each model, made when it is first wanted."""

    def __init__(self) -> None:
        self._made: dict[str, Chunker] = {}

    def of(self, model: EmbeddingModel) -> Chunker:
        """The model's."""
        name = model.space.name
        made = self._made.get(name)
        if made is None:
            made = self._made[name] = Chunker(model)
        return made


def error_of(pieces: Sequence[PendingVector]) -> InferenceError | None:
    """The first piece's error, if any has one."""
    return next((piece.error for piece in pieces if piece.error is not None), None)


def vector_of(pieces: Sequence[PendingVector]) -> NDArray[np.float64] | None:
    """A text's vector, of length 1; None where the jobs that wanted it were abandoned."""
    vectors = [piece.vector for piece in pieces if piece.vector is not None]
    if len(vectors) < len(pieces):
        return None
    weights = np.array([piece.tokens for piece in pieces], dtype=np.float64)
    total = np.stack(vectors).astype(np.float64).T @ weights
    mean: NDArray[np.float64] = total / (np.linalg.norm(total) or 1.0)
    return mean


def tokens_of(pieces: Sequence[PendingVector]) -> int:
    """What a text takes."""
    return sum(piece.tokens for piece in pieces)
