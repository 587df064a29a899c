"""Schema of the catalogue: models with their backend, quality, tasks and price; the routing policy.

`inference.catalogue.loader` reads it from a file.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from functools import cached_property
from typing import Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator

from vestry.lanes import Kind, Privacy

Locality = Literal["local", "cloud"]
"""Whether content stays on the operator's own machines."""

ORDINARY: Final = "ordinary"
ALL: Final = "all"

E = TypeVar("E", "BackendEntry", "ModelEntry")

_NAME = r"[A-Za-z0-9][A-Za-z0-9._:/+-]{0,99}"
_SCALES: Final = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}
_BITS: Final = {
    "fp32": 32.0,
    "fp16": 16.0,
    "bf16": 16.0,
    "q8": 8.5,
    "q5": 5.5,
    "q4": 4.5,
    "int8": 8.0,
}
"""Bits of a weight, with the scales of block formats (llama.cpp's Q4 and Q8 families)."""


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class BackendEntry(_Entry):
    """A model runtime.

    Attributes:
        name: its name in models and settings.
        runtime: its module in `inference.backends`, or a dotted module name.
        locality: whether content stays on the operator's own machines.
        enabled: used by default; others only if VESTRY_BACKENDS names them.
        url: base URL of a server; VESTRY_BACKENDS may name another.
        key: an API key is required (VESTRY_BACKEND_KEYS).
        requests_per_minute: most calls in any 60 seconds, over all workers together.
        rate_window_s: the window in which calls are counted, in seconds; a shorter one has its share
            of the calls of a minute.
        timeout_s: longest duration of a call, in seconds.
        about: one line for a reader.
        options: further settings of the runtime.
    """

    name: str = Field(pattern=_NAME)
    runtime: str = Field(pattern=r"[a-z_][a-z0-9_.]*")
    locality: Locality
    enabled: bool = True
    url: str | None = None
    key: bool = False
    requests_per_minute: int | None = Field(None, ge=1)
    rate_window_s: float = Field(60.0, gt=0, le=60)
    timeout_s: float = Field(120.0, gt=0)
    about: str = ""
    options: dict[str, Any] = Field(default_factory=dict)

    @property
    def calls_in_window(self) -> int | None:
        """Most calls in any `rate_window_s`; None without a limit."""
        if self.requests_per_minute is None:
            return None
        return max(1, int(self.requests_per_minute * self.rate_window_s / 60))


class Price(_Entry):
    """US dollars for a million tokens."""

    input: Decimal = Field(ge=0)
    output: Decimal = Field(Decimal(0), ge=0)

    def of(self, input_tokens: int | None, output_tokens: int | None) -> Decimal:
        """The price of a call, in US dollars."""
        million = Decimal(1_000_000)
        return (self.input * (input_tokens or 0) + self.output * (output_tokens or 0)) / million


class ModelEntry(_Entry):
    """A model.

    Attributes:
        name: its name in jobs and on receipts; unique.
        backend: the backend that serves it.
        kinds: kinds of job that it can serve.
        served_as: its backend's name for it, if that is another one.
        tasks: tasks that it is good enough for: `ordinary` is every task that is not demanding, `all`
            is every task; or a list of tasks.
        dimension: of its vectors, for embedding.
        context: tokens that it reads at once.
        parameters: their number, such as 3.2B.
        quantization: of its weights, such as fp16 or Q4.
        price: per million tokens; none for local models.
        resident: loaded and warmed up when a worker starts; others at their first job.
        query_prefix: put before every query that it embeds.
        document_prefix: put before every document.
        about: one line for a reader.
        get: the command that installs it, shown by `vestry doctor`.
        options: further settings for its backend.
    """

    name: str = Field(pattern=_NAME)
    backend: str
    kinds: tuple[Kind, ...] = Field(min_length=1)
    served_as: str | None = None
    tasks: Literal["ordinary", "all"] | tuple[str, ...] = ORDINARY
    dimension: int | None = Field(None, ge=1, le=4000)
    context: int | None = Field(None, ge=1)
    parameters: str | None = Field(None, pattern=r"\d+(\.\d+)?[KMB]?")
    quantization: str | None = None
    price: Price | None = None
    resident: bool = False
    query_prefix: str = ""
    document_prefix: str = ""
    about: str = ""
    get: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)

    @field_validator("kinds", mode="before")
    @classmethod
    def _one_kind(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @property
    def served_name(self) -> str:
        """Its backend's name for it."""
        return self.served_as or self.name

    @property
    def weight_bytes(self) -> int | None:
        """Bytes of its weights at its quantization; None if the catalogue does not say."""
        bits = next(
            (b for q, b in _BITS.items() if (self.quantization or "").lower().startswith(q)), None
        )
        match = re.fullmatch(r"([\d.]+)([KMB]?)", self.parameters or "")
        if bits is None or match is None:
            return None
        return int(float(match[1]) * _SCALES[match[2]] * bits / 8)


class TaskEntry(_Entry):
    """A task: the purpose of a request, which decides the models that are good enough.

    Attributes:
        name: its name in jobs.
        kinds: kinds of job that may have it.
        demanding: only models whose `tasks` name it, or are `all`, are good enough.
        about: one line for a reader.
    """

    name: str = Field(pattern=r"[a-z0-9][a-z0-9-]{0,63}")
    kinds: tuple[Kind, ...] = Field(min_length=1)
    demanding: bool = False
    about: str = ""


class When(_Entry):
    """Condition of a rule; an empty field matches every request."""

    kind: tuple[Kind, ...] = ()
    task: tuple[str, ...] = ()
    privacy: tuple[Privacy, ...] = ()
    latency: tuple[Literal["interactive", "bulk"], ...] = ()
    tier: tuple[str, ...] = ()
    quality: tuple[Literal["adequate", "best"], ...] = ()

    @field_validator("*", mode="before")
    @classmethod
    def _one(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    def matches(self, **fields: str | None) -> bool:
        """Whether the condition holds for the fields of a request."""
        return all(
            not (allowed := getattr(self, name)) or fields[name] in allowed
            for name in type(self).model_fields
        )


class Rule(_Entry):
    """A rule of the routing policy: localities by preference. The first rule that matches applies.

    Attributes:
        when: condition on the request.
        prefer: localities in order; one that is not named is never used.
        because: one line for a reader.
    """

    when: When = Field(default_factory=When)
    prefer: tuple[Locality, ...] = Field(min_length=1)
    because: str = ""


class Catalogue(_Entry):
    """The content of the file, validated."""

    backends: tuple[BackendEntry, ...]
    models: tuple[ModelEntry, ...]
    tasks: tuple[TaskEntry, ...] = ()
    policy: tuple[Rule, ...]

    @cached_property
    def version(self) -> str:
        """Twelve hex digits that change with anything that affects a route."""
        fields = self.model_dump(mode="json", exclude={"backends": {"__all__": {"url"}}})
        content = json.dumps(fields, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    def backend(self, name: str) -> BackendEntry:
        """A backend by name; KeyError if there is none."""
        return _named(self.backends, name)

    def model(self, name: str) -> ModelEntry:
        """A model by name; KeyError if there is none."""
        return _named(self.models, name)

    def adequate(self, model: ModelEntry, task: str | None) -> bool:
        """Whether a model is good enough for a task; an undeclared task is ordinary."""
        if model.tasks == ALL:
            return True
        if isinstance(model.tasks, tuple):
            return task in model.tasks
        return not any(entry.demanding for entry in self.tasks if entry.name == task)

    def only(self, backends: Mapping[str, str | None]) -> Catalogue:
        """Restricted to some backends, with their URLs replaced where one is named."""
        return self.model_copy(
            update={
                "backends": tuple(
                    b.model_copy(update={"url": backends[b.name] or b.url})
                    for b in self.backends
                    if b.name in backends
                ),
                "models": tuple(m for m in self.models if m.backend in backends),
            }
        )

    def adding(self, backend: BackendEntry | None, model: ModelEntry) -> Catalogue:
        """With a model added before all others, and its backend if that is new.

        Other embedding models are no longer resident: this one is the default.
        """
        backends = self.backends if backend is None else (*self.backends, backend)
        rest = tuple(
            m.model_copy(update={"resident": m.resident and "embedding" not in m.kinds})
            for m in self.models
            if m.name != model.name
        )
        return self.model_copy(update={"backends": backends, "models": (model, *rest)})


def _named(entries: Sequence[E], name: str) -> E:
    for entry in entries:
        if entry.name == name:
            return entry
    raise KeyError(name)
