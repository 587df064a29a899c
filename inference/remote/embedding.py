"""An embedding model behind a server, of whatever protocol: prefixes, batches, checks, its space."""

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
"""Handed over at once; cancelled jobs are looked after between such calls."""
BATCH_TEXTS: Final = 64
"""In one request."""
DEFAULT_CONTEXT: Final = 512
_SPECIAL_TOKENS: Final = 2
_SHARE: Final = 0.75
"""Of the context that is filled by estimate. What turns out too long all the same is refused by the
server, not cut."""


class RemoteEmbedding(ABC):
    """See `inference.protocol.EmbeddingModel`. Token counts are estimates, the server's are exact.

    Args:
        entry: the model's, with its dimension.
        config: its backend's.
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
        """The space its vectors lie in; the first time, the server may be asked for its revision.

        Raises:
            InferenceError: it was asked, and did not answer.
        """
        with self._lock:
            if self._space is None:
                self._space = self._describe()
            return self._space

    @property
    def max_tokens(self) -> int:
        """Most tokens in one text, by estimate."""
        return int((self._entry.context or DEFAULT_CONTEXT) * _SHARE)

    def count_tokens(
        self,
        texts: Sequence[str],
        input: InputType = "document",  # noqa: A002 - the protocol's name
    ) -> list[int]:
        """About how many tokens each text has, its prefix and special tokens included."""
        overhead = _SPECIAL_TOKENS + estimate_tokens(self._prefixes[input])
        return [overhead + estimate_tokens(text) for text in texts]

    def embed(
        self,
        texts: Sequence[str],
        input: InputType = "document",  # noqa: A002 - the protocol's name
        *,
        urgent: bool = False,  # noqa: ARG002 - the server has an order of its own
    ) -> Vectors:
        """Vectors of length 1, float32 of shape (len(texts), dimension).

        Raises:
            TooLong: a text is; which, the server does not say where it was sent several.
            BadVectors: they are not of the space's dimension, not as many as the texts, or not finite.
            InferenceError: any other of the family.
        """
        dimension = self._dimension
        prepared = [self._prefixes[input] + text for text in texts]
        vectors = np.empty((len(texts), dimension), dtype=np.float32)
        for start, batch in _batches(prepared):
            part = _as_vectors(self._ask(batch))
            try:
                faulty = invalid_rows(part, len(batch), dimension)
            except BadVectors:
                raise BadVectors(indices=range(start, start + len(batch))) from None
            if faulty:
                raise BadVectors(indices=[start + place for place in faulty])
            vectors[start : start + len(batch)] = _normalised(part)
        return vectors

    @abstractmethod
    def _ask(self, texts: list[str]) -> ArrayLike:
        """The server's vectors of one batch, in order."""

    @abstractmethod
    def _revision(self) -> str:
        """Hex digest of what the vectors depend on, as far as it can be known."""

    @abstractmethod
    def _library(self) -> str:
        """What computes the vectors; told, not compared."""

    @property
    def _dimension(self) -> int:
        assert self._entry.dimension is not None  # noqa: S101 - the catalogue is checked for it
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
        """For servers that do not name their model's files: a digest of all that is declared of it.

        `options: {revision: …}` of the catalogue's entry is part of it, to be changed whenever the
        weights behind the name are.
        """
        entry = self._entry
        known = [
            entry.served_name, entry.dimension, entry.quantization,
            entry.query_prefix, entry.document_prefix, entry.options.get("revision"),
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(known, default=str).encode()).hexdigest()


def _batches(texts: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Runs of texts for one request each, with the place of their first."""
    start, tokens = 0, 0
    for place, text in enumerate(texts):
        cost = estimate_tokens(text)
        if place > start and (place - start == BATCH_TEXTS or tokens + cost > CALL_TOKENS):
            yield start, list(texts[start:place])
            start, tokens = place, 0
        tokens += cost
    if start < len(texts):
        yield start, list(texts[start:])


def _as_vectors(answer: ArrayLike) -> Vectors:
    try:
        with np.errstate(over="ignore"):  # what is no float32 becomes infinite, and is found out
            vectors: Vectors = np.asarray(answer, dtype=np.float32)
    except (TypeError, ValueError):  # ragged, or no numbers
        raise BadVectors from None
    return vectors


def _normalised(vectors: Vectors) -> Vectors:
    # In float64: the square of a large float32 overflows.
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    unit: Vectors = (vectors / lengths).astype(np.float32)
    return unit


# About how many tokens a text has, for models whose tokenizer is on another machine.

CHARACTERS_PER_TOKEN: Final = 4
"""Of a word of plain letters. Tokenizers of English come to 4.2 and more, words alone to 3.5."""

_PIECES: Final = re.compile(r"[A-Za-z]+|[0-9]+|[^\x00-\x7f]+|[^\sA-Za-z0-9]")


def estimate_tokens(text: str) -> int:
    """Rather too many than too few for prose: punctuation and unusual letters count in full."""
    return sum(_tokens(match[0]) for match in _PIECES.finditer(text))


def _tokens(piece: str) -> int:
    if not piece.isascii():
        # At worst a token a byte; scripts with words of their own come to half of it.
        return -(-len(piece.encode("utf-8", "surrogatepass")) // 2)
    if piece.isdigit():
        return -(-len(piece) // 2)
    return -(-len(piece) // CHARACTERS_PER_TOKEN)
