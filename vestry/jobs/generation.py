"""Generation jobs: an answer of a language model to a prompt or messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Literal

from vestry.errors import InvalidInput, PayloadTooLarge
from vestry.jobs.base import COST_BYTES, Digest, Prepared
from vestry.lanes import Kind
from vestry.validation import PAYLOAD_LIMIT, check_label, check_source, check_text, dump_json

MAX_TOKENS_LIMIT: Final = 131_072
PASSAGES_MAX: Final = 50
_STOPS_MAX: Final = 16
_BOUNDS: Final[Mapping[str, tuple[float, float]]] = {
    "temperature": (0.0, 5.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "repeat_penalty": (0.0, 5.0),
}


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Grounding:
    """Search passages first, and have the answer cite them.

    Attributes:
        query: the text to search for; by default the last message.
        sources: shareable sources to search, of any owner.
        own_sources: search only these of the owner's sources; by default all of them, `()` none.
        limit: most passages, 1 to 50.
    """

    query: str | None = field(default=None, repr=False)
    sources: Sequence[str] = ()
    own_sources: Sequence[str] | None = None
    limit: int = 4

    def __post_init__(self) -> None:
        if self.query is not None:
            check_text("grounding.query", self.query)
        for name in ("sources", "own_sources"):
            sources = getattr(self, name)
            if sources is None:
                continue
            if isinstance(sources, (str, bytes)) or not isinstance(sources, Sequence):
                raise InvalidInput(f"grounding.{name}", "must be a list of sources")
            for source in sources:
                check_source(source)
            object.__setattr__(self, name, tuple(sources))
        _check_whole("grounding.limit", self.limit, PASSAGES_MAX)


@dataclass(frozen=True, slots=True)
class Generation:
    """An answer written by a language model.

    Attributes:
        prompt: a single question; give this or `messages`.
        messages: a conversation that ends with a message of the user.
        system: the system message before `prompt`.
        schema: a JSON schema (draft 2020-12) for the answer; the result's `value` is valid by it.
        stop: strings at which to stop.
        max_tokens: most tokens of the answer.
        temperature, top_p, top_k, min_p, seed, presence_penalty, frequency_penalty, repeat_penalty:
            sampling; those that a provider refuses are not sent to it.
        grounding: search passages first, and have the answer cite them.
        model: a model's name in the catalogue; by default routing chooses.
        keep_input: False deletes the input once the job has succeeded, also if it is shareable; the
            job then cannot be replayed at better quality.
    """

    prompt: str | None = field(default=None, repr=False)
    messages: Sequence[Message] | None = field(default=None, repr=False)
    system: str | None = field(default=None, repr=False)
    schema: Mapping[str, Any] | None = field(default=None, repr=False)
    stop: Sequence[str] = ()
    max_tokens: int = 512
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repeat_penalty: float | None = None
    grounding: Grounding | None = field(default=None, repr=False)
    model: str | None = None
    keep_input: bool = True
    kind: ClassVar[Kind] = "generation"

    def __post_init__(self) -> None:
        if (self.prompt is None) == (self.messages is None):
            raise InvalidInput("prompt", "give either a prompt or messages")
        if self.prompt is not None:
            check_text("prompt", self.prompt)
            if self.system is not None:
                check_text("system", self.system)
        elif self.messages is not None:
            _check_messages(self.messages)
            object.__setattr__(self, "messages", tuple(self.messages))
            if self.system is not None:
                raise InvalidInput("system", "is for prompt; put it into messages")
        if self.schema is not None and not isinstance(self.schema, Mapping):
            raise InvalidInput("schema", "must be a JSON schema object")
        if self.grounding is not None and not isinstance(self.grounding, Grounding):
            raise InvalidInput("grounding", "must be a Grounding")
        if self.model is not None:
            check_label("model", self.model)
        _check_whole("max_tokens", self.max_tokens, MAX_TOKENS_LIMIT)
        self._check_stop()
        self._check_sampling()

    def prepare(self, digest: Digest, payload_limit: int = PAYLOAD_LIMIT) -> Prepared:
        """Serialise: `{"messages", "max_tokens", "stop", "sampling", "schema", "grounding"}`.

        Raises:
            InvalidInput: the schema is not JSON.
            PayloadTooLarge: over `payload_limit` bytes.
        """
        del digest
        messages = self._messages()
        body: dict[str, Any] = {
            "messages": [{"role": one.role, "content": one.content} for one in messages],
            "max_tokens": self.max_tokens,
            "stop": list(self.stop),
            "sampling": self._sampling(),
            "schema": None if self.schema is None else dict(self.schema),
            "grounding": None,
        }
        sources: tuple[str, ...] = ()
        if self.grounding is not None:
            own = self.grounding.own_sources
            body["grounding"] = {
                "query": self.grounding.query or messages[-1].content,
                "sources": list(self.grounding.sources),
                "own_sources": None if own is None else list(own),
                "limit": self.grounding.limit,
            }
            sources = (*self.grounding.sources, *(own or ()))
        payload = dump_json("schema" if self.schema is not None else "messages", body)
        if len(payload) > payload_limit:
            raise PayloadTooLarge("messages", len(payload), payload_limit)
        return Prepared(
            kind=self.kind,
            pool=None,
            model=self.model,
            payload=payload,
            cost=1 + len(payload) // COST_BYTES,
            keep_payload=self.keep_input,
            sources=sources,
        )

    def _messages(self) -> Sequence[Message]:
        if self.messages is not None:
            return self.messages
        messages = [Message("user", str(self.prompt))]
        if self.system is not None:
            messages.insert(0, Message("system", self.system))
        return messages

    def _sampling(self) -> dict[str, Any]:
        names = (*_BOUNDS, "top_k", "seed")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def _check_stop(self) -> None:
        if isinstance(self.stop, (str, bytes)) or not isinstance(self.stop, Sequence):
            raise InvalidInput("stop", "must be a list of strings")
        if len(self.stop) > _STOPS_MAX:
            raise InvalidInput("stop", f"must have at most {_STOPS_MAX} strings")
        for index, text in enumerate(self.stop):
            if not isinstance(text, str) or not text:
                raise InvalidInput(f"stop[{index}]", "must be a string of at least one character")
        object.__setattr__(self, "stop", tuple(self.stop))

    def _check_sampling(self) -> None:
        for name, (low, high) in _BOUNDS.items():
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise InvalidInput(name, "must be a number")
            if not low <= value <= high:
                raise InvalidInput(name, f"must be {low:g} to {high:g}")
        if self.top_k is not None:
            _check_whole("top_k", self.top_k, 2**31 - 1)
        if self.seed is not None and (
            isinstance(self.seed, bool)
            or not isinstance(self.seed, int)
            or not 0 <= self.seed < 2**32
        ):
            raise InvalidInput("seed", "must be a whole number from 0 to 2**32 - 1")


def _check_messages(messages: object) -> None:
    if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence):
        raise InvalidInput("messages", "must be a list")
    if not messages:
        raise InvalidInput("messages", "must not be empty")
    for index, message in enumerate(messages):
        if not isinstance(message, Message):
            raise InvalidInput(f"messages[{index}]", "must be a Message")
        if message.role not in {"system", "user", "assistant"}:
            raise InvalidInput(f"messages[{index}].role", "must be system, user or assistant")
        check_text(f"messages[{index}].content", message.content)
    if messages[-1].role != "user":
        raise InvalidInput("messages", "must end with a message of the user")


def _check_whole(name: str, value: object, maximum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= maximum:
        raise InvalidInput(name, f"must be a whole number from 1 to {maximum}")


@dataclass(frozen=True, slots=True)
class Citation:
    """A passage that an answer is based on.

    Attributes:
        passage: its number in the model's prompt, from 1.
        marked: the answer cites it; an answer that cites none lists all passages of its prompt.
        owner: owner of its document.
        source: the document's collection.
        document: the document's id, as it was indexed.
        date: as it was indexed.
        score: cosine similarity of passage and query.
        text: the passage.
    """

    passage: int
    marked: bool
    owner: str
    source: str
    document: str
    date: str | None
    score: float
    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """An answer.

    Attributes:
        text: the answer; with a schema, the JSON as the model wrote it.
        value: that JSON, parsed and valid by the schema; None without one.
        finish_reason: `stop`, `length` if `max_tokens` cut it, `refusal` if the model declined.
        input_tokens: tokens read, over all calls; None if the backend does not report them.
        output_tokens: tokens written.
        citations: passages that a grounded answer is based on.
    """

    text: str = field(repr=False)
    value: Any = field(repr=False)
    finish_reason: str
    input_tokens: int | None
    output_tokens: int | None
    citations: tuple[Citation, ...] = ()

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> GenerationResult:
        """From the worker's `{"text", "finish_reason", "usage", "citations", "json"?}`."""
        usage = body.get("usage") or {}
        return cls(
            text=str(body["text"]),
            value=body.get("json"),
            finish_reason=str(body["finish_reason"]),
            input_tokens=usage.get("input_tokens"),
            output_tokens=usage.get("output_tokens"),
            citations=tuple(Citation(**row) for row in body.get("citations", ())),
        )
