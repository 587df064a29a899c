"""Vectors of the texts of a batch of jobs: each distinct text is embedded once, and fails by itself.

A text of any length has one vector: the mean of the vectors of those pieces that fit the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import UUID

import numpy as np

from inference.errors import BadRequest, BadVectors, InferenceError
from inference.protocol import EmbeddingModel, InputType, invalid_rows
from tasks.chunking import Chunker, Span
from vestry.bisection import bisect_failures

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(slots=True, eq=False)
class PendingVector:
    """One text's vector, or the reason for its absence.

    With neither vector nor error, all jobs that requested it were cancelled.
    """

    text: str = field(repr=False)
    tokens: int
    jobs: set[UUID] = field(default_factory=set)
    vector: NDArray[np.float32] | None = field(default=None, repr=False)
    error: InferenceError | None = None


class EmbeddingBatch:
    """Collects texts of many jobs, then embeds them together."""

    def __init__(self) -> None:
        self._requested: dict[tuple[InputType, str], PendingVector] = {}
        self.backend_error: InferenceError | None = None
        """The last error that is about the backend rather than about a text."""

    def request(self, job_id: UUID, text: str, tokens: int, input: InputType) -> PendingVector:  # noqa: A002
        """Request a text's vector; equal texts share one."""
        pending = self._requested.setdefault((input, text), PendingVector(text, tokens))
        pending.jobs.add(job_id)
        return pending

    def embed(
        self, backend: EmbeddingModel, is_cancelled: Callable[[UUID], bool], *, urgent: bool
    ) -> None:
        """Fill in every vector or error. Raises only errors other than `InferenceError`.

        Args:
            backend: the vectors are of its space.
            is_cancelled: called for each job before each call of the backend; a text is left out
                once all jobs that requested it are cancelled.
            urgent: as in `EmbeddingModel.embed`.
        """
        inputs: tuple[InputType, InputType] = ("query", "document")
        for kind in inputs:
            texts = [pending for (input_, _), pending in self._requested.items() if input_ == kind]

            def call(part: Sequence[PendingVector], kind: InputType = kind) -> None:
                self._embed_part(backend, part, kind, urgent=urgent)

            for part in _by_tokens(texts, backend.call_tokens):
                cancelled = {job for text in part for job in text.jobs if is_cancelled(job)}
                remaining = [text for text in part if not text.jobs <= cancelled]
                if remaining:
                    for failed, error in bisect_failures(remaining, call, (InferenceError,)):
                        if error is not None:
                            failed[0].error = error

    def _embed_part(
        self,
        backend: EmbeddingModel,
        texts: Sequence[PendingVector],
        input: InputType,  # noqa: A002
        *,
        urgent: bool,
    ) -> None:
        """Embed texts; those that the backend names as faulty get its error, the others a vector.

        Raises:
            InferenceError: some text is at fault, and the backend does not say which.
        """
        while texts:
            try:
                vectors = backend.embed([text.text for text in texts], input, urgent=urgent)
                invalid = set(invalid_rows(vectors, len(texts), backend.space.dimension))
            except InferenceError as error:
                if not error.per_text:
                    self.backend_error = error
                elif not error.indices:
                    raise
                faulty = set(error.indices) if error.per_text else set(range(len(texts)))
                for index in faulty:
                    texts[index].error = error
                texts = [text for index, text in enumerate(texts) if index not in faulty]
                continue
            for index, text in enumerate(texts):
                if index in invalid:
                    text.error = BadVectors()
                else:
                    text.vector = vectors[index]
            return


def _by_tokens(texts: Sequence[PendingVector], budget: int) -> Iterator[list[PendingVector]]:
    """Parts of at most `budget` tokens, of texts of similar length: a backend pads to the longest."""
    part: list[PendingVector] = []
    tokens = 0
    for text in sorted(texts, key=lambda text: text.tokens, reverse=True):
        if part and tokens + text.tokens > budget:
            yield part
            part, tokens = [], 0
        part.append(text)
        tokens += text.tokens
    if part:
        yield part


class LongTextEmbedder:
    """Requests the vectors of whole texts; each distinct text is chunked once. For one batch.

    Args:
        chunker: the model's chunker.
    """

    def __init__(self, chunker: Chunker) -> None:
        self._chunker = chunker
        self._spans: dict[str, list[Span]] = {}

    def request(self, embeddings: EmbeddingBatch, job_id: UUID, text: str) -> list[PendingVector]:
        """Request the vectors of a text's pieces.

        Raises:
            InferenceError: it cannot be chunked.
        """
        spans = self._spans.get(text)
        if spans is None:
            (spans,) = self._chunker.split([text])
            self._spans[text] = spans
        if not spans:
            raise BadRequest("a text is only white space")
        return [embeddings.request(job_id, span.text, span.tokens, "document") for span in spans]


class Chunkers:
    """The chunker of each model, made at first use."""

    def __init__(self) -> None:
        self._chunkers: dict[str, Chunker] = {}

    def of(self, model: EmbeddingModel) -> Chunker:
        """The chunker of a model."""
        name = model.space.name
        chunker = self._chunkers.get(name)
        if chunker is None:
            chunker = self._chunkers[name] = Chunker(model)
        return chunker


def error_of(pieces: Sequence[PendingVector]) -> InferenceError | None:
    """The error of the first piece that has one."""
    return next((piece.error for piece in pieces if piece.error is not None), None)


def vector_of(pieces: Sequence[PendingVector]) -> NDArray[np.float64] | None:
    """A text's vector, of length 1; None if all jobs that requested it were cancelled."""
    vectors = [piece.vector for piece in pieces if piece.vector is not None]
    if len(vectors) < len(pieces):
        return None
    weights = np.array([piece.tokens for piece in pieces], dtype=np.float64)
    total = np.stack(vectors).astype(np.float64).T @ weights
    mean: NDArray[np.float64] = total / (np.linalg.norm(total) or 1.0)
    return mean


def tokens_of(pieces: Sequence[PendingVector]) -> int:
    """Tokens of a text, over its pieces."""
    return sum(piece.tokens for piece in pieces)
