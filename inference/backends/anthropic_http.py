"""Anthropic's Messages API: generation, neither embedding nor reranking.

Options of the backend, overridden by those of a model:

* `schema`: with `native` (default) the API enforces a JSON schema; `instruct` puts it into the system
  prompt, for models and servers without that feature.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

import anthropic
import httpx2

from inference.catalogue.schema import ModelEntry
from inference.errors import BackendUnavailable, BadAnswer, BadRequest, InferenceError, TooLong
from inference.protocol import (
    BackendConfig,
    BackendProbe,
    Cancelled,
    FinishReason,
    Generated,
    GenerationRequest,
    not_cancelled,
)
from inference.remote.client import PROBE_S, base_url, httpx2_client
from inference.remote.egress import send_refused_reason
from inference.remote.response_errors import error_codes, error_for_status, unreachable
from inference.remote.streaming import MALFORMED, finish_response, raise_if_cancelled, stream_until
from vestry.jobs.generation import Message

_REASONS: Final[Mapping[str, FinishReason]] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "refusal",
}
_NO_KEY: Final = "none"
"""Sent if no key is configured: without one, the SDK would search several places for a key."""
_INSTRUCTION: Final = (
    "Answer with one JSON document that is valid under this JSON schema, and with nothing else:\n"
)


def connect(config: BackendConfig) -> AnthropicBackend:
    """See `inference.protocol.Backend`."""
    return AnthropicBackend(config)


class AnthropicBackend:
    """Anthropic, or a server of its protocol. See `inference.protocol.Backend`."""

    def __init__(self, config: BackendConfig) -> None:
        self.name = config.name
        self.locality = config.locality
        self._config = config
        self._client = anthropic.Anthropic(
            base_url=base_url(config),
            api_key=config.key or _NO_KEY,
            max_retries=0,
            timeout=config.timeout_s,
            http_client=httpx2_client(config),
            open_telemetry=False,  # spans can hold content
        )

    def load(self, model: ModelEntry) -> AnthropicModel:
        """See `Backend.load`; no request is made."""
        return AnthropicModel(self._client, self._config, model)

    def probe(self) -> BackendProbe:
        """Request the list of models, which is free of charge."""
        try:
            listed = self._client.models.list(limit=1000, timeout=PROBE_S)
            models = frozenset(model.id for model in listed.data)
        except anthropic.APIStatusError as error:
            return unreachable(error.status_code)
        except (anthropic.APIConnectionError, httpx2.HTTPError):
            return unreachable()
        except (anthropic.AnthropicError, *MALFORMED):
            return unreachable(malformed=True)
        return BackendProbe(reachable=True, models=models, detail=f"{len(models)} models")

    def close(self) -> None:
        """Close its connections."""
        self._client.close()


class AnthropicModel:
    """One model. See `inference.protocol.GenerationModel`.

    The API no longer has sampling parameters, so none is sent.
    """

    def __init__(
        self, client: anthropic.Anthropic, config: BackendConfig, entry: ModelEntry
    ) -> None:
        self._client = client
        self._config = config
        self._entry = entry
        self._options = {**config.options, **entry.options}

    def generate(
        self, request: GenerationRequest, cancelled: Cancelled = not_cancelled
    ) -> Generated:
        """See `GenerationModel.generate`. Closing the stream ends the server's work."""
        raise_if_cancelled(cancelled)
        prompt = self._prompt(request)
        answer = _PartialAnswer()
        self._config.acquire_permit()
        try:
            with self._client.messages.create(
                **prompt, **self._limits(request), stream=True
            ) as stream:
                for event in stream_until(stream, cancelled, self._config.timeout_s):
                    answer.add(event)
        except (anthropic.APITimeoutError, httpx2.TimeoutException):
            raise BackendUnavailable(f"no answer within {self._config.timeout_s:.0f} s") from None
        except anthropic.APIConnectionError as error:
            if refusal := send_refused_reason(error):
                raise refusal from None
            raise BackendUnavailable(f"backend {self._config.name} cannot be reached") from None
        except anthropic.APIError as error:
            raise self._mapped(error, prompt) from None
        # Inside a stream the SDK does not map its HTTP library's errors.
        except (anthropic.AnthropicError, httpx2.HTTPError, *MALFORMED):
            raise BadAnswer("the answer broke off, or is malformed") from None
        reason = answer.reason if answer.ended else None
        return finish_response(
            request, answer.text, reason, answer.input_tokens, answer.output_tokens
        )

    def warm_up(self) -> None:
        """Have a local server load the model; Anthropic's are always loaded, and calls cost money."""
        if self._config.locality == "local":
            with suppress(BadAnswer):  # a single token may be half a character: an empty answer
                self.generate(GenerationRequest([Message("user", "Hello")], max_tokens=1))

    def _prompt(self, request: GenerationRequest) -> dict[str, Any]:
        """The parts of a request that the model reads, and that count as its input tokens."""
        system = [m.content for m in request.messages if m.role == "system"]
        if request.schema is not None and not self._native:
            system.append(_INSTRUCTION + json.dumps(request.schema, ensure_ascii=False))
        prompt: dict[str, Any] = {
            "model": self._entry.served_name,
            "messages": [
                {"role": m.role, "content": m.content}
                for m in request.messages
                if m.role != "system"
            ],
        }
        if system:
            prompt["system"] = "\n\n".join(system)
        return prompt

    def _limits(self, request: GenerationRequest) -> dict[str, Any]:
        """The parts of a request that limit the answer."""
        limits: dict[str, Any] = {"max_tokens": request.max_tokens}
        if request.stop:
            limits["stop_sequences"] = list(request.stop)
        if request.schema is not None and self._native:
            try:
                schema = anthropic.transform_schema(dict(request.schema))
            except MALFORMED:
                raise BadRequest(
                    "the schema has parts that this backend cannot enforce; simplify it"
                ) from None
            limits["output_config"] = {"format": {"type": "json_schema", "schema": schema}}
        return limits

    @property
    def _native(self) -> bool:
        return bool(self._options.get("schema", "native") == "native")

    def _mapped(self, error: anthropic.APIError, prompt: Mapping[str, Any]) -> InferenceError:
        if not isinstance(error, anthropic.APIStatusError):
            return BadAnswer()
        codes = error_codes(error.body)
        # An error inside a stream has the stream's own status.
        status = error.status_code if error.status_code >= 300 else None  # noqa: PLR2004
        mapped = error_for_status(status, codes, error.response.headers, self._entry)
        if type(mapped) is BadRequest and self._is_too_long(prompt):
            return TooLong()
        return mapped

    def _is_too_long(self, prompt: Mapping[str, Any]) -> bool:
        """Whether a refused prompt exceeds the context: counted, since the API has no code for that."""
        if self._entry.context is None:
            return False
        try:
            tokens = self._client.messages.count_tokens(**prompt).input_tokens
        except (anthropic.AnthropicError, httpx2.HTTPError, *MALFORMED):
            return False
        return tokens > self._entry.context


class _PartialAnswer:
    """The part of an answer that has arrived."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self.reason: FinishReason | None = None
        self.ended = False
        self.input_tokens: int | None = None
        self.output_tokens: int | None = None

    @property
    def text(self) -> str:
        return "".join(self._parts)

    def add(self, event: anthropic.types.RawMessageStreamEvent) -> None:
        if event.type == "message_start":
            usage = event.message.usage
            # Cached tokens are reported separately; they are input tokens too.
            cached = (usage.cache_creation_input_tokens, usage.cache_read_input_tokens)
            self.input_tokens = usage.input_tokens + sum(count or 0 for count in cached)
        elif event.type == "content_block_delta" and event.delta.type == "text_delta":
            self._parts.append(event.delta.text)
        elif event.type == "message_delta":
            self.output_tokens = event.usage.output_tokens
            if event.delta.stop_reason is not None:
                self.reason = _REASONS[event.delta.stop_reason]
        elif event.type == "message_stop":
            self.ended = True
