"""A fake backend for every kind but OCR, without a model, for tests and benchmarks.

Texts that share words have similar vectors, so that searches return sensible hits; passages that share
words with a query score higher; an answer repeats the last message.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from inference.catalogue.schema import Locality
from inference.errors import ModelMissing, TooLong
from inference.protocol import (
    BackendConfig,
    BackendProbe,
    Cancelled,
    Generated,
    GenerationRequest,
    InputType,
    SpaceSpec,
    not_cancelled,
    space_name,
)

if TYPE_CHECKING:
    from inference.catalogue.schema import ModelEntry
    from inference.protocol import Vectors

NAME: Final = "echo"
DEFAULT_DIMENSION: Final = 384
MAX_TOKENS: Final = 256
CHARACTERS_PER_TOKEN: Final = 4
_SPECIAL_TOKENS: Final = 2
_MODEL = re.compile(r"echo(?:-(?P<dimension>[1-9]\d{0,3}))?")


class EchoBackend:
    """See `inference.protocol.Backend`."""

    def __init__(self, config: BackendConfig) -> None:
        self.name = config.name
        self.locality: Locality = config.locality

    def load(self, model: ModelEntry) -> EchoModel:
        """The model, with the dimension in its name."""
        return EchoModel(model.served_name, self.name)

    def probe(self) -> BackendProbe:
        """Always reachable."""
        return BackendProbe(reachable=True, models=None, detail="a fake, for tests")

    def close(self) -> None:
        """There is nothing to close."""


def connect(config: BackendConfig) -> EchoBackend:
    """The backend of a configuration."""
    return EchoBackend(config)


class EchoModel:
    """Hashed bags of words. See `inference.protocol`: EmbeddingModel, GenerationModel, RerankModel."""

    locality: Locality = "local"
    max_tokens = MAX_TOKENS
    call_tokens = 8_192
    tokenizer: Any | None = None
    longest_word: int | None = None

    def __init__(self, model: str | None = None, name: str = NAME) -> None:
        """Define the space.

        Args:
            model: `echo` or, for another dimension than 384, `echo-64`.
            name: the backend's.

        Raises:
            ModelMissing: any other name.
        """
        match = _MODEL.fullmatch(model or NAME)
        if match is None:
            raise ModelMissing(
                f"the echo backend has no embedding model {model!r}; it has echo and echo-N, with the "
                "dimension N"
            )
        self.name = name
        dimension = int(match["dimension"] or DEFAULT_DIMENSION)
        revision = hashlib.sha256(b"bag of words, shake_256, version 1").hexdigest()
        self.space = SpaceSpec(
            name=space_name(NAME, revision, dimension, "fake"),
            model=NAME,
            revision=revision,
            dimension=dimension,
            query_prefix="",
            document_prefix="",
            normalised=True,
            precision="fake",
            library="vestry echo (a fake for tests)",
        )

    def count_tokens(
        self,
        texts: Sequence[str],
        input: InputType = "document",  # noqa: A002, ARG002 - the protocol's
    ) -> list[int]:
        """A token for every four characters, and two more."""
        return [_SPECIAL_TOKENS - (-len(text) // CHARACTERS_PER_TOKEN) for text in texts]

    def embed(
        self,
        texts: Sequence[str],
        input: InputType = "document",  # noqa: A002 - the protocol's
        *,
        urgent: bool = False,  # noqa: ARG002 - the protocol's
    ) -> Vectors:
        """Vectors of length 1, float32 of shape (len(texts), dimension)."""
        tokens = self.count_tokens(texts, input)
        too_long = [index for index, count in enumerate(tokens) if count > MAX_TOKENS]
        if too_long:
            raise TooLong(indices=too_long)
        dimension = self.space.dimension
        vectors = np.empty((len(texts), dimension), dtype=np.float32)
        for index, text in enumerate(texts):
            vectors[index] = _bag_of_words(text, dimension)
        return vectors

    def rerank(
        self,
        query: str,
        passages: Sequence[str],
        *,
        urgent: bool = False,  # noqa: ARG002 - the protocol's
    ) -> Sequence[float]:
        """Cosine similarities of the bags of words."""
        vectors = self.embed([query, *passages])
        return [float(score) for score in vectors[1:] @ vectors[0]]

    def generate(
        self,
        request: GenerationRequest,
        cancelled: Cancelled = not_cancelled,  # noqa: ARG002 - the protocol's
    ) -> Generated:
        """The last message, one token a word, or the smallest value that the schema allows."""
        tokens = sum(len(message.content.split()) for message in request.messages)
        if request.schema is not None:
            text = json.dumps(_smallest(request.schema))
            return Generated(text, "stop", tokens, len(text.split()))
        words = request.messages[-1].content.split()
        text = " ".join(words[: request.max_tokens])
        cut = len(words) > request.max_tokens
        return Generated(text, "length" if cut else "stop", tokens, len(text.split()))

    def warm_up(self) -> None:
        """There is nothing to warm up."""


def _smallest(schema: Mapping[str, Any]) -> Any:
    """A value that fits a schema, as short as possible."""
    if "enum" in schema:
        return schema["enum"][0]
    match schema.get("type"):
        case "object":
            return {name: _smallest(of) for name, of in schema.get("properties", {}).items()}
        case "array":
            return [_smallest(schema.get("items", {}))] * int(schema.get("minItems", 0))
        case "integer" | "number":
            return schema.get("minimum", 0)
        case "boolean":
            return False
        case _:
            return "echo"


def _bag_of_words(text: str, dimension: int) -> Vectors:
    total = np.zeros(dimension, dtype=np.int64)
    for word in re.findall(r"\w+", text.lower()) or [text]:
        digest = hashlib.shake_256(word.encode("utf-8", "surrogatepass")).digest(dimension)
        # Odd numbers: no component of a word's vector is zero.
        total += 2 * np.frombuffer(digest, dtype=np.int8).astype(np.int64) + 1
    if not total.any():
        total[0] = 1
    vector: Vectors = (total / np.linalg.norm(total)).astype(np.float32)
    return vector
