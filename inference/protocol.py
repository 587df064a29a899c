"""Protocols of a backend and of its models, one for each kind of job; OCR's is in `inference.ocr`.

All methods raise the errors of `inference.errors` only, except for bugs, and may be called from several
threads. Every wait is bounded, and nothing is retried: retries belong to the queue.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from inference.errors import BadVectors
from vestry.jobs.classification import LabelScore
from vestry.jobs.generation import Message

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from inference.catalogue.schema import Locality, ModelEntry
    from inference.remote.egress import Recorder
    from inference.remote.local_network import Network
    from vestry.jobs.classification import LabelScore
    from vestry.jobs.generation import Message

    Vectors = NDArray[np.float32]

InputType = Literal["query", "document"]
FinishReason = Literal["stop", "length", "refusal"]
Cancelled = Callable[[], bool]
"""Cancellation callback, polled during long calls; once it returns True, the outcome is discarded."""


def no_wait() -> None:
    """`BackendConfig.acquire_permit` of a backend without a rate limit."""


def not_cancelled() -> bool:
    """`Cancelled` for calls that are never cancelled."""
    return False


@dataclass(frozen=True, slots=True)
class BackendConfig:
    """One backend as a process uses it: its catalogue entry, with URL and key filled in.

    Attributes:
        name: as in the catalogue and on receipts.
        locality: whether content stays on the operator's own machines.
        url: base URL of a server.
        key: API key, if the server requires one.
        timeout_s: longest duration of a call, in seconds.
        connect_s: longest time for its server to accept a connection, in seconds.
        threads: compute threads of models in this process; None for `default_threads()`.
        device: as VESTRY_DEVICE.
        nice: priority of helper processes that it starts, 0 to 19.
        temp_dir: a private directory for temporary files; None for the default one.
        local_networks: networks that count as local besides the loopback interface; None in a process
            of the shareable class, which may call servers anywhere.
        egress: writes the record of each request to a cloud; None in a process that may call no cloud.
        options: further settings of this runtime, from the catalogue.
        acquire_permit: called right before each request that counts against the backend's calls per
            minute; waits for a permit, or raises `LocalRateLimit` if the wait would be too long.
    """

    name: str
    locality: Locality
    url: str | None = None
    key: str | None = field(default=None, repr=False)
    timeout_s: float = 120.0
    connect_s: float = 5.0
    threads: int | None = None
    device: str = "auto"
    nice: int = 0
    temp_dir: Path | None = None
    local_networks: tuple[Network, ...] | None = ()
    egress: Recorder | None = field(default=None, repr=False)
    options: Mapping[str, Any] = field(default_factory=dict)
    acquire_permit: Callable[[], None] = no_wait


@dataclass(frozen=True, slots=True)
class BackendProbe:
    """State of a backend, for `vestry doctor`.

    Attributes:
        reachable: whether it responds.
        models: models ready for use, by the backend's own names; None if it cannot list them.
        detail: one line for a reader, without content.
    """

    reachable: bool
    models: frozenset[str] | None
    detail: str


class Backend(Protocol):
    """One model runtime. Constructing one connects to nothing and loads nothing."""

    @property
    def name(self) -> str:
        """As in the catalogue."""
        ...

    @property
    def locality(self) -> Locality:
        """Whether content stays on the operator's own machines."""
        ...

    def load(self, model: ModelEntry) -> ServedModel:
        """Load one of its models; `warm_up` makes the first call as fast as later ones.

        The returned object implements the protocol of every kind in `model.kinds` that the runtime
        serves. No request is sent to a server: the first call fails if its model is missing.

        Raises:
            ModelMissing: it is not on this machine; the message says what to do.
            DeviceMissing: the device is not on this machine.
        """
        ...

    def probe(self) -> BackendProbe:
        """Check whether it can be used. Never raises, takes a few seconds at most."""
        ...

    def close(self) -> None:
        """Close connections and end helper processes. Safe to repeat."""
        ...


class ServedModel(Protocol):
    """A loaded model. It also implements EmbeddingModel, GenerationModel, …."""

    def warm_up(self) -> None:
        """Make the first real call as fast as later ones."""
        ...


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters. None is the model's default; those that a provider rejects are omitted."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repeat_penalty: float | None = None


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A request for an answer to messages.

    Attributes:
        messages: at least one.
        max_tokens: most tokens of the answer.
        stop: strings at which the answer ends; they are not part of it.
        sampling: sampling parameters.
        schema: a JSON schema for the answer. Backends that can enforce one do so; the caller validates
            in any case.
    """

    messages: Sequence[Message]
    max_tokens: int
    stop: tuple[str, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    schema: Mapping[str, Any] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Generated:
    """A model's answer. Token counts are None if the backend does not report them."""

    text: str = field(repr=False)
    finish_reason: FinishReason
    input_tokens: int | None
    output_tokens: int | None


class GenerationModel(Protocol):
    """A model that generates text."""

    def generate(
        self, request: GenerationRequest, cancelled: Cancelled = not_cancelled
    ) -> Generated:
        """Generate an answer.

        Args:
            request: messages and limits.
            cancelled: once it returns True, the call soon ends with `CallCancelled`.

        Raises:
            TooLong: the prompt is longer than the model's context.
            RateLimited, BackendUnavailable, Refused, BadRequest, ModelMissing: as their names say.
        """
        ...

    def warm_up(self) -> None:
        """Make the first real call as fast as later ones."""
        ...


class RerankModel(Protocol):
    """A model that scores how well passages answer a query."""

    def rerank(
        self, query: str, passages: Sequence[str], *, urgent: bool = False
    ) -> Sequence[float]:
        """A finite score for each passage, in order; higher is better, comparable within the call.

        Raises:
            TooLong: with `indices`; a passage together with the query is never truncated.
        """
        ...

    def warm_up(self) -> None:
        """Make the first real call as fast as later ones."""
        ...


class BuiltinClassifier(Protocol):
    """A classifier with a fixed set of labels, such as languages."""

    @property
    def labels(self) -> tuple[str, ...]:
        """All its labels."""
        ...

    def classify(self, text: str, labels: Sequence[str]) -> Sequence[LabelScore]:
        """A score for each of `labels`, the most likely first.

        Args:
            text: any.
            labels: some of its own; empty for all of them.

        Returns:
            Nothing if the text has no evidence for any label.

        Raises:
            BadRequest: a label is not one of its own.
        """
        ...

    def normalised(self, text: str) -> str | None:
        """The text in canonical form; None if the classifier defines none, or the text has none."""
        ...

    def warm_up(self) -> None:
        """Make the first real call as fast as later ones."""
        ...


@dataclass(frozen=True, slots=True)
class SpaceSpec:
    """One embedding space; the fields are the arguments of `vestry.ensure_space_v1`, in its order.

    Attributes:
        name: see `space_name`; the same on every machine that computes the same vectors.
        model: the model's short name.
        revision: hex digest of the model's files.
        dimension: numbers in a vector.
        query_prefix: put before every query.
        document_prefix: put before every document.
        normalised: vectors have length 1.
        precision: of the computation: `fp32`, `fp16`, `bf16`.
        library: library and version that computed the vectors; informative, not compared.
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
    """A readable name that differs whenever vectors are not comparable.

    Device, thread count and batch size are no part of it: they do not change a vector beyond
    rounding.

    Returns:
        For example `all-MiniLM-L6-v2.1f2e3d4c.384.fp32`.
    """
    readable = re.sub(r"[^A-Za-z0-9_-]+", "-", model)
    return f"{readable}.{revision[:8]}.{dimension}.{precision}"


class EmbeddingModel(Protocol):
    """A loaded embedding model."""

    @property
    def name(self) -> str:
        """The backend's name, as on receipts."""
        ...

    @property
    def locality(self) -> Locality:
        """Whether texts stay on the operator's own machines."""
        ...

    @property
    def space(self) -> SpaceSpec:
        """The embedding space of all of its vectors."""
        ...

    @property
    def max_tokens(self) -> int:
        """Most tokens in one text, its prefix and special tokens included."""
        ...

    @property
    def call_tokens(self) -> int:
        """Recommended tokens of one `embed` call: about a second of work.

        Callers check for cancelled jobs between such calls.
        """
        ...

    @property
    def tokenizer(self) -> Any | None:
        """A `tokenizers.Tokenizer` that neither truncates nor pads, or None if there is none."""
        ...

    @property
    def longest_word(self) -> int | None:
        """Characters in a word beyond which the tokenizer makes it one unknown token; None: no limit.

        `embed` and `count_tokens` break such words (`inference.device.tokenizer`); callers that use
        `tokenizer` directly must do the same.
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
            texts: any number, in any order; the backend forms its own batches.
            input: selects the prefix.
            urgent: of an interactive job; runs before work that is not urgent, at the next batch.

        Raises:
            TooLong: with `indices`; a text is never truncated.
            InferenceError: any other error of a backend.
        """
        ...

    def warm_up(self) -> None:
        """Make the first real call as fast as later ones."""
        ...


def invalid_rows(vectors: Vectors, count: int, dimension: int) -> list[int]:
    """Indices of the vectors that must not be stored: not finite, or all zeros.

    A zero vector has no direction, so its cosine similarity to anything is undefined.

    Args:
        vectors: returned by `EmbeddingModel.embed`.
        count: number of texts that were embedded.
        dimension: of the space.

    Raises:
        BadVectors: the array has another shape, so no row can be attributed to a text.
    """
    import numpy as np  # noqa: PLC0415 - slow to import; the dispatcher needs this module without it

    if vectors.shape != (count, dimension):
        raise BadVectors
    valid = np.isfinite(vectors).all(axis=1) & vectors.any(axis=1)
    return [int(row) for row in np.flatnonzero(~valid)]
