"""What every embedding backend offers. Other kinds get a protocol of their own beside this one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]

InputType = Literal["query", "document"]
Locality = Literal["local", "cloud"]


@dataclass(frozen=True, slots=True)
class SpaceSpec:
    """One vector space; the fields are the arguments of `vestry.ensure_space_v1`, in its order.

    Attributes:
        name: see `space_name`; the same on every machine that makes the same vectors.
        model: the model's short name.
        revision: hex digest of the model's files.
        dimension: numbers in a vector.
        query_prefix: put before every query.
        document_prefix: put before every document.
        normalised: vectors have length 1.
        precision: of the computation: `fp32`, `fp16`, `bf16`.
        library: what computed the vectors, with its version; told, not compared.
    """

    name: str
    model: str
    revision: str
    dimension: int
    query_prefix: str
    document_prefix: str
    normalised: bool
    precision: str
    library: str


def space_name(model: str, revision: str, dimension: int, precision: str) -> str:
    """A readable name that differs whenever vectors may not be compared.

    Device, thread count and batch size are no part of it: they do not change a vector beyond
    rounding.

    Returns:
        For example `all-MiniLM-L6-v2.1f2e3d4c.384.fp32`.
    """
    readable = re.sub(r"[^A-Za-z0-9_-]+", "-", model)
    return f"{readable}.{revision[:8]}.{dimension}.{precision}"


class EmbeddingBackend(Protocol):
    """One embedding model, loaded. Safe to call from several threads.

    All methods raise the errors of `inference.errors` only, but for bugs.
    """

    @property
    def name(self) -> str:
        """The runtime's name, as VESTRY_EMBEDDING_BACKEND and receipts have it."""
        ...

    @property
    def locality(self) -> Locality:
        """Whether texts stay on our own machines."""
        ...

    @property
    def space(self) -> SpaceSpec:
        """The space all of its vectors lie in."""
        ...

    @property
    def max_tokens(self) -> int:
        """Most tokens in one text, its prefix and special tokens included."""
        ...

    @property
    def call_tokens(self) -> int:
        """Tokens a caller best hands over in one `embed`: about a second of work.

        A caller that looks after cancelled jobs does so between such calls.
        """
        ...

    @property
    def tokenizer(self) -> Any | None:
        """A `tokenizers.Tokenizer` that neither cuts nor pads, or None where there is none."""
        ...

    @property
    def longest_word(self) -> int | None:
        """Characters from which the tokenizer gives a word up as unknown; None for no limit.

        `embed` and `count_tokens` break such words (`inference.long_words`); who uses `tokenizer`
        directly must do the same.
        """
        ...

    def count_tokens(
        self,
        texts: Sequence[str],
        input: InputType = "document",  # noqa: A002
    ) -> list[int]:
        """Exact tokens of each text, its prefix and special tokens included."""
        ...

    def embed(
        self,
        texts: Sequence[str],
        input: InputType = "document",  # noqa: A002 - the name the SDKs use
        *,
        urgent: bool = False,
    ) -> Vectors:
        """Vectors of texts, as float32 of shape (len(texts), space.dimension).

        Args:
            texts: any number, in any order; the backend cuts them into batches of its own.
            input: decides the prefix.
            urgent: someone waits; goes before work that is not urgent, at the next batch.

        Raises:
            TooLong: with `indices`; a text is never cut.
            InferenceError: any other of the family.
        """
        ...

    def warm_up(self) -> None:
        """Make the first real call as fast as the later ones."""
        ...
