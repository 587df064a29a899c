"""Texts of any length as one vector each: the mean of the pieces that fit the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final
from uuid import UUID

import numpy as np

from inference.errors import BadRequest, InferenceError
from inference.protocol import EmbeddingModel
from tasks.chunking import Chunker, Span
from tasks.vector_pool import VectorPool, Wanted

if TYPE_CHECKING:
    from numpy.typing import NDArray

_DOCUMENT: Final = "document"


class WholeTexts:
    """Asks a pool for the vectors of whole texts; each distinct text is cut once. For one batch.

    Args:
        chunker: of the model.
    """

    def __init__(self, chunker: Chunker) -> None:
        self._chunker = chunker
        self._spans: dict[str, list[Span]] = {}

    def want(self, pool: VectorPool, job_id: UUID, text: str) -> list[Wanted]:
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
        return [pool.want(job_id, span.text, span.tokens, _DOCUMENT) for span in spans]


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


def error_of(pieces: Sequence[Wanted]) -> InferenceError | None:
    """The first piece's error, if any has one."""
    return next((piece.error for piece in pieces if piece.error is not None), None)


def vector_of(pieces: Sequence[Wanted]) -> NDArray[np.float64] | None:
    """A text's vector, of length 1; None where the jobs that wanted it were abandoned."""
    vectors = [piece.vector for piece in pieces if piece.vector is not None]
    if len(vectors) < len(pieces):
        return None
    weights = np.array([piece.tokens for piece in pieces], dtype=np.float64)
    total = np.stack(vectors).astype(np.float64).T @ weights
    mean: NDArray[np.float64] = total / (np.linalg.norm(total) or 1.0)
    return mean


def tokens_of(pieces: Sequence[Wanted]) -> int:
    """What a text takes."""
    return sum(piece.tokens for piece in pieces)
