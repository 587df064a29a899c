"""Servers of OpenAI's protocol: OpenAI, llama.cpp, LM Studio, vLLM, a custom FastAPI server.

Options of a backend, overridden by those of a model:

* `sampling`: the parameters that the server supports, as a list, or as a mapping from the names in
  `Sampling` to the server's. By default OpenAI's five for a cloud, all of `Sampling` for a local
  server.
* `max_tokens`: the name of that parameter; by default `max_completion_tokens` for a cloud.
* `dimensions`: true has the server shorten its vectors to the entry's dimension.
* `revision`: of an embedding model's weights; see `inference.remote.embedding`.
* `rerank_path`: below the base URL; by default `rerank`, as in llama.cpp and vLLM.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
import openai
from openai.types.chat import ChatCompletionChunk

from inference.catalogue.schema import ModelEntry
from inference.errors import BackendUnavailable, BadAnswer, InferenceError
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
from inference.remote.embedding import RemoteEmbedding
from inference.remote.response_errors import code_of, error_codes, error_for_status, unreachable
from inference.remote.streaming import MALFORMED, finish_response, raise_if_cancelled, stream_until
from vestry.jobs.generation import Message

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

T = TypeVar("T")

_OPENAI_SAMPLING: Final = ("temperature", "top_p", "seed", "presence_penalty", "frequency_penalty")
_REASONS: Final[Mapping[str, FinishReason]] = {
    "stop": "stop",
    "length": "length",
    "content_filter": "refusal",
}
_NO_KEY: Final = "none"
"""Sent if no key is configured: without one, the SDK would search the environment for a key."""
_BEYOND_STRICT: Final = frozenset(
    {
        "allOf", "not", "if", "then", "else",
        "dependentRequired", "dependentSchemas", "patternProperties",
    }
)  # fmt: skip
"""Keywords of JSON schema that OpenAI's strict mode does not accept."""


def connect(config: BackendConfig) -> OpenAIBackend:
    """See `inference.protocol.Backend`."""
    return OpenAIBackend(config)


class OpenAIBackend:
    """One server. See `inference.protocol.Backend`."""

    def __init__(self, config: BackendConfig) -> None:
        self.name = config.name
        self.locality = config.locality
        self._config = config
        self._client = openai.OpenAI(
            base_url=base_url(config),
            api_key=config.key or _NO_KEY,
            max_retries=0,
            timeout=config.timeout_s,
            http_client=httpx2_client(config),
        )

    def load(self, model: ModelEntry) -> OpenAIModel:
        """See `Backend.load`; no request is made."""
        return OpenAIModel(self._client, self._config, model)

    def probe(self) -> BackendProbe:
        """Request the list of models, which is free of charge."""
        try:
            listed = self._client.models.list(timeout=PROBE_S)
            models = frozenset(model.id for model in listed.data)
        except openai.APIStatusError as error:
            return unreachable(error.status_code)
        except openai.APIConnectionError:
            return unreachable()
        except (openai.OpenAIError, *MALFORMED):
            return unreachable(malformed=True)
        return BackendProbe(reachable=True, models=models, detail=f"{len(models)} models")

    def close(self) -> None:
        """Close its connections."""
        self._client.close()


class OpenAIModel(RemoteEmbedding):
    """One model of a server: generation, embedding and reranking, if the server supports them."""

    def __init__(self, client: openai.OpenAI, config: BackendConfig, entry: ModelEntry) -> None:
        super().__init__(entry, config)
        self._client = client
        self._config = config
        self._options = {**config.options, **entry.options}

    def generate(
        self, request: GenerationRequest, cancelled: Cancelled = not_cancelled
    ) -> Generated:
        """See `GenerationModel.generate`. Closing the stream ends the server's work."""
        raise_if_cancelled(cancelled)
        arguments = self._arguments(request)
        text: list[str] = []
        reason: FinishReason | None = None
        usage: tuple[int | None, int | None] = (None, None)

        def read() -> None:
            nonlocal reason, usage
            with self._client.chat.completions.create(**arguments) as stream:
                for chunk in stream_until(stream, cancelled, self._config.timeout_s):
                    text.append(_content(chunk))
                    reason = _reason(chunk) or reason
                    if chunk.usage is not None:
                        usage = (chunk.usage.prompt_tokens, chunk.usage.completion_tokens)

        self._config.acquire_permit()
        self._mapping_errors(read, begun=lambda: bool(text))
        return finish_response(request, "".join(text), reason, *usage)

    def rerank(
        self,
        query: str,
        passages: Sequence[str],
        *,
        urgent: bool = False,  # noqa: ARG002 - the server orders its requests itself
    ) -> Sequence[float]:
        """See `RerankModel.rerank`."""
        if not passages:
            return []
        body = {
            "model": self._entry.served_name,
            "query": query,
            "documents": list(passages),
            "top_n": len(passages),
        }
        path = f"/{self._options.get('rerank_path', 'rerank')}"
        self._config.acquire_permit()
        return self._mapping_errors(
            lambda: _scores(self._client.post(path, body=body, cast_to=object), len(passages))
        )

    def warm_up(self) -> None:
        """Have a local server load the model; a cloud's is always loaded, and calls cost money."""
        if self.locality == "cloud":
            return
        kinds = set(self._entry.kinds)
        if kinds & {"generation", "classification"}:
            with suppress(BadAnswer):  # a single token may be half a character: an empty answer
                self.generate(GenerationRequest([Message("user", "Hello")], max_tokens=1))
        if "embedding" in kinds:
            self.embed(["warm"], "query", urgent=True)
        if "rerank" in kinds:
            self.rerank("warm", ["warm"], urgent=True)

    def _arguments(self, request: GenerationRequest) -> dict[str, Any]:
        cloud = self.locality == "cloud"
        limit = self._options.get("max_tokens", "max_completion_tokens" if cloud else "max_tokens")
        names = self._options.get("sampling")
        if names is None:
            names = _OPENAI_SAMPLING if cloud else asdict(request.sampling).keys()
        renamed = names if isinstance(names, Mapping) else {name: name for name in names}
        arguments: dict[str, Any] = {
            "model": self._entry.served_name,
            "messages": [{"role": m.role, "content": m.content} for m in request.messages],
            "stream": True,
            "stream_options": {"include_usage": True},
            "extra_body": {
                limit: request.max_tokens,
                **{
                    renamed[name]: value
                    for name, value in asdict(request.sampling).items()
                    if value is not None and name in renamed
                },
            },
        }
        if request.stop:
            arguments["stop"] = list(request.stop)
        if request.schema is not None:
            schema = dict(request.schema)
            arguments["response_format"] = {
                "type": "json_schema",
                "json_schema": {
                    "name": "answer",
                    "schema": schema,
                    "strict": strict_mode_accepts(schema),
                },
            }
        return arguments

    def _embed_batch(self, texts: list[str]) -> ArrayLike:
        # Numbers from a local server: every server supports those.
        arguments: dict[str, Any] = {
            "model": self._entry.served_name,
            "input": texts,
            "encoding_format": "base64" if self.locality == "cloud" else "float",
        }
        if self._options.get("dimensions"):
            arguments["dimensions"] = self._dimension

        def call() -> ArrayLike:
            response = self._client.embeddings.create(**arguments)
            rows = sorted(response.data, key=lambda row: row.index)
            return [_numbers(row.embedding) for row in rows]

        self._config.acquire_permit()
        return self._mapping_errors(call)

    def _revision(self) -> str:
        return self._declared_revision()

    def _library(self) -> str:
        return f"{self.name} (OpenAI protocol)"

    def _mapping_errors(
        self, call: Callable[[], T], begun: Callable[[], bool] = lambda: False
    ) -> T:
        """Make a call, with its errors mapped to `InferenceError`.

        Args:
            call: makes the request.
            begun: whether a part of the answer has arrived.
        """
        try:
            return call()
        except openai.APITimeoutError:
            raise BackendUnavailable(f"no answer within {self._config.timeout_s:.0f} s") from None
        except openai.APIConnectionError as error:
            if refusal := send_refused_reason(error):
                raise refusal from None
            if begun():
                raise BadAnswer("the answer broke off before its end") from None
            raise BackendUnavailable(f"backend {self.name} cannot be reached") from None
        except openai.APIError as error:
            raise self._mapped(error) from None
        except (openai.OpenAIError, *MALFORMED):
            raise BadAnswer from None

    def _mapped(self, error: openai.APIError) -> InferenceError:
        codes = error_codes(error.body)
        if isinstance(error, openai.APIStatusError):
            return error_for_status(error.status_code, codes, error.response.headers, self._entry)
        return error_for_status(code_of(error.body), codes, {}, self._entry)  # inside a stream


def _content(chunk: ChatCompletionChunk) -> str:
    return (chunk.choices[0].delta.content or "") if chunk.choices else ""


def _reason(chunk: ChatCompletionChunk) -> FinishReason | None:
    if not chunk.choices:
        return None
    if chunk.choices[0].delta.refusal:
        return "refusal"
    reason = chunk.choices[0].finish_reason
    return None if reason is None else _REASONS[reason]


def _numbers(embedding: Any) -> Any:
    """A vector from numbers, or from their little-endian bytes in base64."""
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding, validate=True), dtype="<f4")
    return embedding


def _scores(response: Any, count: int) -> list[float]:
    """Scores in order, from the format of Jina's API: `results` of `index` and `relevance_score`."""
    scores = {int(row["index"]): float(row["relevance_score"]) for row in response["results"]}
    ordered = [scores[index] for index in range(count)]
    if not all(map(math.isfinite, ordered)):
        raise BadAnswer("a score is not a finite number")
    return ordered


def strict_mode_accepts(schema: Mapping[str, Any]) -> bool:
    """Whether OpenAI's strict mode accepts a schema: each object requires all of its properties.

    Any other schema is sent without being enforced.
    """
    return all(_is_closed(part) for part in _parts(schema))


def _is_closed(part: Mapping[str, Any]) -> bool:
    if _BEYOND_STRICT & part.keys():
        return False
    if part.get("type") != "object" and "properties" not in part:
        return True
    names = set(part.get("properties") or ())
    return part.get("additionalProperties") is False and set(part.get("required") or ()) == names


def _parts(schema: Any) -> Iterator[Mapping[str, Any]]:
    """The schema and every schema within it."""
    remaining = [schema]
    while remaining:
        part = remaining.pop()
        if isinstance(part, Mapping):
            yield part
            for name in ("properties", "$defs", "definitions"):
                remaining += (part.get(name) or {}).values()
            for name in ("anyOf", "oneOf", "prefixItems"):
                remaining += part.get(name) or ()
            remaining.append(part.get("items"))
