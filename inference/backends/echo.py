"""A fake backend for every kind but OCR: no model, no torch, the same answers everywhere. For tests.

Texts that share words get similar vectors, so searches find something sensible; passages that share
words with a query score higher; an answer repeats the last message. Words that start with `echo!` ask
for a fault; see `FAULTS`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from inference.catalogue.schema import Locality
from inference.errors import (
    BackendUnavailable,
    BadRequest,
    CallCancelled,
    InferenceError,
    ModelMissing,
    OutOfMemory,
    RateLimited,
    Refused,
    TooLong,
)
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
_FAULT = re.compile(r"echo!(?P<fault>[a-z-]+)(?:=(?P<value>[0-9.]+))?")

_ERRORS: Final[dict[str, type[InferenceError]]] = {
    "bad-request": BadRequest,
    "out-of-memory": OutOfMemory,
    "rate-limited": RateLimited,
    "refused": Refused,
    "unavailable": BackendUnavailable,
}
FAULTS: Final = (
    "nan", "zero", "wrong-dimension", "raise", "sleep", "exit", "segfault", "memory", *_ERRORS
)  # fmt: skip
"""`echo!nan` and `echo!zero` spoil the text's own vector, `echo!wrong-dimension` the whole call's.
`echo!sleep=1.5` takes so many seconds. `echo!raise` raises an error outside the family,
`echo!exit` ends the process at once and `echo!segfault` by that signal, as crashes in native code do.
`echo!memory=512` takes so many MiB, or what the process may have, and then there is no more.
`echo!rate-limited=7` asks to wait so many seconds; the other names raise the error of that name."""

_MIB: Final = 1024 * 1024


class EchoBackend:
    """See `inference.protocol.Backend`."""

    def __init__(self, config: BackendConfig) -> None:
        self.name = config.name
        self.locality: Locality = config.locality

    def load(self, model: ModelEntry) -> EchoModel:
        """The fake, with the dimension that its name asks for."""
        return EchoModel(model.served_name, self.name)

    def probe(self) -> BackendProbe:
        """It is always there."""
        return BackendProbe(reachable=True, models=None, detail="a fake, for tests")

    def close(self) -> None:
        """There is nothing to close."""


def connect(config: BackendConfig) -> EchoBackend:
    """The backend that a configuration describes."""
    return EchoBackend(config)


class EchoModel:
    """Hashed bags of words. See `inference.protocol`: EmbeddingModel, GenerationModel, RerankModel."""

    locality: Locality = "local"
    max_tokens = MAX_TOKENS
    call_tokens = 8_192
    tokenizer: Any | None = None
    longest_word: int | None = None

    def __init__(self, model: str | None = None, name: str = NAME) -> None:
        """Name the space.

        Args:
            model: `echo` or, for another dimension than 384, `echo-64`.
            name: the backend's.

        Raises:
            ModelMissing: any other name.
        """
        match = _MODEL.fullmatch(model or NAME)
        if match is None:
            raise ModelMissing(
                f"embedding model {model!r} is none of the echo backend's: it has echo and echo-N, "
                "where N is the dimension"
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
        """Four characters make a token, and two are added."""
        return [_SPECIAL_TOKENS - (-len(text) // CHARACTERS_PER_TOKEN) for text in texts]

    def embed(
        self,
        texts: Sequence[str],
        input: InputType = "document",  # noqa: A002 - the protocol's
        *,
        urgent: bool = False,  # noqa: ARG002 - the protocol's
    ) -> Vectors:
        """Vectors of length 1, float32 of shape (len(texts), dimension), or the fault asked for."""
        tokens = self.count_tokens(texts, input)
        too_long = [place for place, count in enumerate(tokens) if count > MAX_TOKENS]
        if too_long:
            raise TooLong(indices=too_long)
        dimension = self.space.dimension
        vectors = np.empty((len(texts), dimension), dtype=np.float32)
        for place, text in enumerate(texts):
            vectors[place] = _bag_of_words(text, dimension)
        for place, text in enumerate(texts):
            for match in _FAULT.finditer(text):
                vectors = _with_fault(vectors, place, match["fault"], float(match["value"] or 1))
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
        cancelled: Cancelled = not_cancelled,
    ) -> Generated:
        """The last message again, a word a token, or the smallest value that the schema allows."""
        prompt = request.messages[-1].content
        for match in _FAULT.finditer(prompt):
            _raise_or_wait(match["fault"], float(match["value"] or 1), cancelled)
        tokens = sum(len(message.content.split()) for message in request.messages)
        if request.schema is not None:
            text = json.dumps(_smallest(request.schema))
            return Generated(text, "stop", tokens, len(text.split()))
        words = prompt.split()
        text = " ".join(words[: request.max_tokens])
        cut = len(words) > request.max_tokens
        return Generated(text, "length" if cut else "stop", tokens, len(text.split()))

    def warm_up(self) -> None:
        """There is nothing to warm."""


def _smallest(schema: Mapping[str, Any]) -> Any:
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
        # Odd numbers: no word's vector is zero in any place.
        total += 2 * np.frombuffer(digest, dtype=np.int8).astype(np.int64) + 1
    if not total.any():
        total[0] = 1
    vector: Vectors = (total / np.linalg.norm(total)).astype(np.float32)
    return vector


def _raise_or_wait(fault: str, value: float, cancelled: Cancelled = not_cancelled) -> None:
    if fault in _ERRORS:
        raise _ERRORS[fault](retry_after=value if fault == "rate-limited" else None)
    if fault == "raise":
        raise RuntimeError("echo was asked to raise")
    if fault == "exit":
        os._exit(70)  # sysexits.h EX_SOFTWARE
    if fault == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if fault == "memory":
        taken = [bytearray(16 * _MIB) for _ in range(int(value) // 16)]
        raise MemoryError(len(taken))
    if fault == "sleep":
        until = time.monotonic() + value
        while (left := until - time.monotonic()) > 0:
            if cancelled():
                raise CallCancelled
            time.sleep(min(left, 0.1))


def _with_fault(vectors: Vectors, place: int, fault: str, value: float) -> Vectors:
    _raise_or_wait(fault, value)
    if fault == "nan":
        vectors[place, 0] = np.nan
    elif fault == "zero":
        vectors[place] = 0
    elif fault == "wrong-dimension":
        return vectors[:, 1:]
    return vectors
