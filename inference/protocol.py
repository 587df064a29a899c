"""What backends offer: one protocol for a runtime, and one for a model of each kind that it serves.

All methods raise the errors of `inference.errors` only, but for bugs, and may be called from several
threads. Every wait is bounded, and nothing is tried twice: retries belong to the queue.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from vestry.jobs.classification import LabelScore
from vestry.jobs.generation import Message

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from inference.catalogue.schema import ModelEntry
    from inference.remote.egress import Recorder
    from inference.remote.local_network import Network

    Vectors = NDArray[np.float32]

InputType = Literal["query", "document"]
Locality = Literal["local", "cloud"]
FinishReason = Literal["stop", "length", "refusal"]
Cancelled = Callable[[], bool]
"""Asked now and then during a long call: True once nobody wants its outcome any more."""


def no_wait() -> None:
    """A `BackendConfig.turn` where there is no limit of calls a minute."""


def not_cancelled() -> bool:
    """A `Cancelled` for calls that nobody cancels."""
    return False


@dataclass(frozen=True, slots=True)
class BackendConfig:
    """What a process was told of one backend: its catalogue entry, with URL and key filled in.

    Attributes:
        name: the backend's, as in the catalogue and on receipts.
        locality: whether what it is sent stays on our own machines.
        url: base URL, where it is a server.
        key: API key, where it wants one.
        timeout_s: longest that a call may take, in seconds.
        connect_s: longest that its server may take to accept a connection, in seconds.
        threads: compute threads, for models in this process; None for the physical cores.
        device: as VESTRY_DEVICE.
        nice: of helper processes it starts, 0 to 19.
        scratch: a private directory for temporary files; None where it needs none.
        networks: what counts as local besides the loopback interface; None in a process whose jobs
            may be seen by others, which calls a server wherever it is.
        egress: writes the record of each request to a cloud; None in a process that may call none.
        options: further settings of this runtime, from the catalogue.
        turn: called right before each request that costs a call under a limit of calls a minute; waits
            for its turn, and raises `OverLimit` where that is too far off.
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
    """What `vestry doctor` is told of a backend.

    Attributes:
        reachable: it answers.
        models: what it has ready, as it names them; None where it does not tell.
        detail: one line for a person, without content.
    """

    reachable: bool
    models: frozenset[str] | None
    detail: str


class Backend(Protocol):
    """One model runtime. Making one connects to nothing and loads nothing."""

    @property
    def name(self) -> str:
        """As in the catalogue."""
        ...

    @property
    def locality(self) -> Locality:
        """Whether content stays on our own machines."""
        ...

    def load(self, model: ModelEntry) -> ServedModel:
        """A model of it, ready to be called; `warm_up` makes the first call as fast as later ones.

        The returned object implements the protocol of every kind in `model.kinds` that the runtime
        serves. A server is not asked whether it has the model: the first call tells.

        Raises:
            ModelMissing: it is not here; the message says what to do.
            DeviceMissing: the device is not here.
        """
        ...

    def probe(self) -> BackendProbe:
        """Ask it how it is. Never raises, takes a few seconds at most."""
        ...

    def close(self) -> None:
        """Give up connections and helper processes. Safe to repeat."""
        ...


class ServedModel(Protocol):
    """A model that a backend serves. It also is an EmbeddingModel, a GenerationModel, …."""

    def warm_up(self) -> None:
        """Make the first real call as fast as the later ones."""
        ...


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen. None leaves it to the model; what a provider refuses is left out."""

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
    """What is to be written.

    Attributes:
        messages: at least one.
        max_tokens: most tokens of the answer.
        stop: strings at which to stop; they are not part of the answer.
        sampling: how tokens are chosen.
        schema: a JSON schema that the answer is to fit, where the backend can be held to it. The
            caller validates all the same.
    """

    messages: Sequence[Message]
    max_tokens: int
    stop: tuple[str, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    schema: Mapping[str, Any] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Generated:
    """What a model wrote. Token counts are None where the backend does not tell."""

    text: str = field(repr=False)
    finish_reason: FinishReason
    input_tokens: int | None
    output_tokens: int | None


class GenerationModel(Protocol):
    """A model that writes text."""

    def generate(
        self, request: GenerationRequest, cancelled: Cancelled = not_cancelled
    ) -> Generated:
        """Write an answer.

        Args:
            request: what is to be written.
            cancelled: where it turns True, the call ends soon with `Abandoned`.

        Raises:
            TooLong: the prompt is longer than the model's context.
            RateLimited, Unavailable, Refused, BadRequest, ModelMissing: as their names say.
        """
        ...

    def warm_up(self) -> None:
        """Make the first real call as fast as the later ones."""
        ...


class RerankModel(Protocol):
    """A model that scores how well passages answer a query."""

    def rerank(
        self, query: str, passages: Sequence[str], *, urgent: bool = False
    ) -> Sequence[float]:
        """A finite score for each passage, in order; higher is better, comparable within the call.

        Raises:
            TooLong: with `indices`; a passage together with the query is never cut.
        """
        ...

    def warm_up(self) -> None:
        """Make the first real call as fast as the later ones."""
        ...


class BuiltinClassifier(Protocol):
    """A classifier with labels of its own, such as languages."""

    @property
    def labels(self) -> tuple[str, ...]:
        """All labels it can give."""
        ...

    def classify(self, text: str, labels: Sequence[str]) -> Sequence[LabelScore]:
        """A score for each of `labels`, the most likely first.

        Args:
            text: any.
            labels: some of its own; empty for all of them.

        Returns:
            Nothing where there is nothing in the text to tell by.

        Raises:
            BadRequest: a label is not one of its own.
        """
        ...

    def normalised(self, text: str) -> str | None:
        """The text in its usual form, where this is about form and the text has it; else None."""
        ...

    def warm_up(self) -> None:
        """Make the first real call as fast as the later ones."""
        ...


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


class EmbeddingModel(Protocol):
    """One embedding model, loaded."""

    @property
    def name(self) -> str:
        """The backend's name, as receipts have it."""
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

        `embed` and `count_tokens` break such words (`inference.device.tokenizer`); who uses `tokenizer`
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
