"""Embedding models on servers of any protocol: batches, validation, token estimates, space."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from inference.catalogue.schema import Locality, ModelEntry
from inference.errors import BadVectors
from inference.protocol import BackendConfig, InputType, SpaceSpec, invalid_rows, space_name

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from inference.protocol import Vectors

CALL_TOKENS: Final = 8_192
"""Tokens of one call; callers check for cancelled jobs between such calls."""
BATCH_TEXTS: Final = 64
"""Texts in one request."""
DEFAULT_CONTEXT: Final = 512
_SPECIAL_TOKENS: Final = 2
_SHARE: Final = 0.75
"""Share of the context that an estimate may fill. The server refuses a longer text, without
truncation."""
CHARACTERS_PER_TOKEN: Final = 4
"""Of a word of plain letters. Tokenizers of English have 4.2 and more, for words alone 3.5."""

_PIECES: Final = re.compile(r"[A-Za-z]+|[0-9]+|[^\x00-\x7f]+|[^\sA-Za-z0-9]")


class RemoteEmbedding(ABC):
    """See `inference.protocol.EmbeddingModel`. Token counts are estimates.

    Args:
        entry: the model's catalogue entry, with its dimension.
        config: the configuration of its backend.
    """

    tokenizer: Any | None = None
    longest_word: int | None = None
    call_tokens = CALL_TOKENS

    def __init__(self, entry: ModelEntry, config: BackendConfig) -> None:
        self._entry = entry
        self._prefixes: dict[InputType, str] = {
            "query": entry.query_prefix,
            "document": entry.document_prefix,
        }
        self.name = config.name
        self.locality: Locality = config.locality
        self._space: SpaceSpec | None = None
        self._lock = threading.Lock()

    @property
    def space(self) -> SpaceSpec:
        """The space of its vectors; the first access may request the revision from the server.

        Raises:
            InferenceError: the server did not answer.
        """
        with self._lock:
            if self._space is None:
                self._space = self._describe()
            return self._space

    @property
    def max_tokens(self) -> int:
        """Most tokens in one text, as estimated."""
        return int((self._entry.context or DEFAULT_CONTEXT) * _SHARE)

    def count_tokens(
        self,
        texts: Sequence[str],
        input: InputType = "document",  # noqa: A002 - the protocol's name
    ) -> list[int]:
        """Estimated tokens of each text, its prefix and special tokens included."""
        overhead = _SPECIAL_TOKENS + estimate_tokens(self._prefixes[input])
        return [overhead + estimate_tokens(text) for text in texts]

    def embed(
        self,
        texts: Sequence[str],
        input: InputType = "document",  # noqa: A002 - the protocol's name
        *,
        urgent: bool = False,  # noqa: ARG002 - the server orders its requests itself
    ) -> Vectors:
        """Vectors of length 1, float32 of shape (len(texts), dimension).

        Raises:
            TooLong: a text is too long; of several, the server does not say which.
            BadVectors: their dimension, number or values are invalid.
            InferenceError: any other error of a backend.
        """
        dimension = self._dimension
        prepared = [self._prefixes[input] + text for text in texts]
        vectors = np.empty((len(texts), dimension), dtype=np.float32)
        for start, batch in _batches(prepared):
            part = _as_vectors(self._embed_batch(batch))
            try:
                invalid = invalid_rows(part, len(batch), dimension)
            except BadVectors:
                raise BadVectors(indices=range(start, start + len(batch))) from None
            if invalid:
                raise BadVectors(indices=[start + row for row in invalid])
            vectors[start : start + len(batch)] = _normalised(part)
        return vectors

    @abstractmethod
    def _embed_batch(self, texts: list[str]) -> ArrayLike:
        """The server's vectors of one batch, in order."""

    @abstractmethod
    def _revision(self) -> str:
        """Hex digest of everything known that the vectors depend on."""

    @abstractmethod
    def _library(self) -> str:
        """Name of the library that computes the vectors; informative, not compared."""

    @property
    def _dimension(self) -> int:
        assert self._entry.dimension is not None  # noqa: S101 - the catalogue's loader checks it
        return self._entry.dimension

    def _describe(self) -> SpaceSpec:
        model = self._entry.name
        revision = self._revision()
        precision = (self._entry.quantization or "unknown").lower()
        return SpaceSpec(
            name=space_name(model, revision, self._dimension, precision),
            model=model,
            revision=revision,
            dimension=self._dimension,
            query_prefix=self._prefixes["query"],
            document_prefix=self._prefixes["document"],
            normalised=True,
            precision=precision,
            library=self._library(),
        )

    def _declared_revision(self) -> str:
        """Digest of the catalogue's entry, for servers that do not identify their model's files.

        It includes the entry's `options: {revision: …}`, which must be changed with the weights.
        """
        entry = self._entry
        declared = [
            entry.served_name, entry.dimension, entry.quantization,
            entry.query_prefix, entry.document_prefix, entry.options.get("revision"),
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(declared, default=str).encode()).hexdigest()


def _batches(texts: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Consecutive texts for one request each, with the index of their first."""
    start, tokens = 0, 0
    for index, text in enumerate(texts):
        cost = estimate_tokens(text)
        if index > start and (index - start == BATCH_TEXTS or tokens + cost > CALL_TOKENS):
            yield start, list(texts[start:index])
            start, tokens = index, 0
        tokens += cost
    if start < len(texts):
        yield start, list(texts[start:])


def _as_vectors(answer: ArrayLike) -> Vectors:
    try:
        with np.errstate(over="ignore"):  # a number beyond float32 becomes infinite, and invalid
            vectors: Vectors = np.asarray(answer, dtype=np.float32)
    except (TypeError, ValueError):  # ragged, or no numbers
        raise BadVectors from None
    return vectors


def _normalised(vectors: Vectors) -> Vectors:
    # In float64: the square of a large float32 overflows.
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    unit: Vectors = (vectors / lengths).astype(np.float32)
    return unit


def estimate_tokens(text: str) -> int:
    """Estimated tokens of a text; for prose rather too many, since punctuation counts fully."""
    return sum(_tokens(match[0]) for match in _PIECES.finditer(text))


def _tokens(piece: str) -> int:
    if not piece.isascii():
        # At worst a token a byte; scripts in the tokenizer's vocabulary have half of that.
        return -(-len(piece.encode("utf-8", "surrogatepass")) // 2)
    if piece.isdigit():
        return -(-len(piece) // 2)
    return -(-len(piece) // CHARACTERS_PER_TOKEN)
