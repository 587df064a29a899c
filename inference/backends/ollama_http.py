"""Ollama's own API: chat, embeddings, list of models, pulling models.

Options of a model:

* `keep_alive`: how long it stays loaded after a call, in Ollama's format (`30m`; -1 without limit). By
  default a resident model stays loaded, others for five minutes.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import httpx
import ollama

from inference.catalogue.schema import ModelEntry
from inference.errors import BackendUnavailable, BadAnswer, InferenceError, ModelMissing, TooLong
from inference.protocol import (
    BackendConfig,
    BackendProbe,
    Cancelled,
    FinishReason,
    Generated,
    GenerationRequest,
    not_cancelled,
)
from inference.remote.client import PROBE_S, httpx_client
from inference.remote.embedding import RemoteEmbedding
from inference.remote.response_errors import (
    code_of,
    error_codes,
    error_for_status,
    model_missing,
    unreachable,
)
from inference.remote.streaming import MALFORMED, finish_response, raise_if_cancelled, stream_until

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

T = TypeVar("T")

_REASONS: Final[Mapping[str, FinishReason]] = {"stop": "stop", "length": "length"}
_INPUT_TOO_LONG: Final = "the input length exceeds the context length"
"""Error message before Ollama 0.34, which has no error codes; later versions pass on llama.cpp's."""
_REMOTE_NAME: Final = re.compile(r".*[-:]cloud")
_REMOTE_FIELDS: Final = ("remote_host", "remote_model")
_LOCALITY_TTL_S: Final = 60.0
"""How long a check that a model is local is valid: its name may later denote another model."""
_FIVE_MINUTES: Final = "5m"
_NO_LIMIT: Final = -1


def connect(config: BackendConfig) -> OllamaBackend:
    """See `inference.protocol.Backend`."""
    return OllamaBackend(config)


class OllamaBackend:
    """One Ollama server. See `inference.protocol.Backend`."""

    def __init__(self, config: BackendConfig) -> None:
        self.name = config.name
        self.locality = config.locality
        self._config = config
        headers = {"Authorization": f"Bearer {config.key}"} if config.key else {}
        self._http = httpx_client(config, headers)
        self._http.event_hooks = {**self._http.event_hooks, "response": [_raise_for_error]}
        self._client = _Client(self._http)

    def load(self, model: ModelEntry) -> OllamaModel:
        """See `Backend.load`; no request is made."""
        return OllamaModel(self._client, self._config, model)

    def probe(self) -> BackendProbe:
        """Request the list of models."""
        try:
            response = self._http.get("/api/tags", timeout=PROBE_S).json()
            names = {str(model["name"]) for model in response["models"]}
        except _ErrorResponse as error:
            return unreachable(error.status)
        except httpx.HTTPError:
            return unreachable()
        except MALFORMED:
            return unreachable(malformed=True)
        # The tag `latest` may be omitted, also in the catalogue.
        models = frozenset(names | {_untagged(name) for name in names})
        return BackendProbe(reachable=True, models=models, detail=f"{len(names)} models")

    def pull(self, model: ModelEntry) -> Iterator[tuple[str, int, int]]:
        """Have the server download a model.

        Yields:
            The current step, bytes done and bytes in all; 0 if unknown.

        Raises:
            ModelMissing: there is no such model, or it is not local.
            InferenceError: any other error of a backend.
        """
        _refuse_remote_name(model, self._config)
        steps = self._client.pull(model.served_name, stream=True)
        while True:
            step = _mapping_errors(lambda: next(steps, None), model, self._config)
            if step is None:
                return
            yield step.status or "", step.completed or 0, step.total or 0

    def close(self) -> None:
        """Close its connections."""
        self._http.close()


class OllamaModel(RemoteEmbedding):
    """One model: generation and embedding."""

    def __init__(self, client: _Client, config: BackendConfig, entry: ModelEntry) -> None:
        super().__init__(entry, config)
        self._client = client
        self._config = config
        default = _NO_LIMIT if entry.resident else _FIVE_MINUTES
        self._keep_alive = {**config.options, **entry.options}.get("keep_alive", default)
        self._checked_at: float | None = None
        self._check_lock = threading.Lock()

    def generate(
        self, request: GenerationRequest, cancelled: Cancelled = not_cancelled
    ) -> Generated:
        """See `GenerationModel.generate`. Closing the stream ends the server's work."""
        raise_if_cancelled(cancelled)
        self._refuse_remote()
        self._config.acquire_permit()
        body = self._chat(request)
        text: list[str] = []
        reason: FinishReason | None = None
        tokens: tuple[int | None, int | None] = (None, None)

        def read() -> None:
            nonlocal reason, tokens
            with closing(self._client.stream_chat(body)) as pieces:
                for piece in stream_until(pieces, cancelled, self._config.timeout_s):
                    text.append(piece.message.content or "")
                    if piece.done:
                        reason = _REASONS[piece.done_reason or "stop"]
                        tokens = (piece.prompt_eval_count, piece.eval_count)

        self._mapping_errors(read, begun=lambda: bool(text))
        # Before 0.12.6 `truncate` is ignored, and a truncated prompt fills the context.
        if self._entry.context is not None and (tokens[0] or 0) >= self._entry.context:
            raise TooLong
        return finish_response(request, "".join(text), reason, *tokens)

    def warm_up(self) -> None:
        """Have the server load the model, for `keep_alive`."""
        self._refuse_remote()
        kinds = set(self._entry.kinds)
        if kinds & {"generation", "classification"}:
            body = {**self._common(), "messages": []}
            self._mapping_errors(lambda: list(self._client.stream_chat(body)))
        if "embedding" in kinds:
            self.embed(["warm"], "query", urgent=True)

    def _chat(self, request: GenerationRequest) -> dict[str, Any]:
        body = self._common()
        body["messages"] = [{"role": m.role, "content": m.content} for m in request.messages]
        sampling = {n: v for n, v in asdict(request.sampling).items() if v is not None}
        body["options"] |= {**sampling, "num_predict": request.max_tokens}
        if request.stop:
            body["options"]["stop"] = list(request.stop)
        if request.schema is not None:
            body["format"] = dict(request.schema)
        # By default messages that do not fit the context are dropped silently.
        return {**body, "truncate": False, "shift": False}

    def _common(self) -> dict[str, Any]:
        """Parameters of every call; they are the same, since another context reloads the model."""
        options = {} if self._entry.context is None else {"num_ctx": self._entry.context}
        return {
            "model": self._entry.served_name,
            "keep_alive": self._keep_alive,
            "options": options,
        }

    def _embed_batch(self, texts: list[str]) -> ArrayLike:
        self._refuse_remote()
        self._config.acquire_permit()
        response = self._mapping_errors(
            lambda: self._client.embed(input=texts, truncate=False, **self._common())
        )
        return cast("ArrayLike", response.embeddings)

    def _revision(self) -> str:
        """Ollama's digest of the model's files."""
        listed = self._mapping_errors(self._client.list)
        for model in listed.models:
            if _untagged(model.model or "") == _untagged(self._entry.served_name) and model.digest:
                return str(model.digest).removeprefix("sha256:")
        raise model_missing(self._entry)

    def _library(self) -> str:
        return f"{self.name} (Ollama)"

    def _mapping_errors(
        self, call: Callable[[], T], begun: Callable[[], bool] = lambda: False
    ) -> T:
        return _mapping_errors(call, self._entry, self._config, begun)

    def _refuse_remote(self) -> None:
        """Check that the model of a local backend runs on the backend's machine.

        Raises:
            ModelMissing: it does not, or does not exist.
        """
        if self.locality != "local":
            return
        _refuse_remote_name(self._entry, self._config)
        with self._check_lock:
            now = time.monotonic()
            if self._checked_at is not None and now - self._checked_at < _LOCALITY_TTL_S:
                return
            details = self._mapping_errors(lambda: self._client.details(self._entry.served_name))
            if any(details.get(field) for field in _REMOTE_FIELDS):
                raise _not_local(self._entry, self._config)
            self._checked_at = now


class _Client(ollama.Client):
    """The SDK's client on an HTTP client from `inference.remote.client`.

    The SDK's own HTTP client would take host and key from the environment.
    """

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def details(self, model: str) -> Mapping[str, Any]:
        """The response of /api/show, with the fields that the SDK's type omits."""
        return dict(self._client.post("/api/show", json={"model": model}).json())

    def stream_chat(self, body: Mapping[str, Any]) -> Generator[ollama.ChatResponse, None, None]:
        """`chat`, with parameters that the SDK's method does not have."""
        pieces = self._request(
            ollama.ChatResponse, "POST", "/api/chat", json={**body, "stream": True}, stream=True
        )
        return cast("Generator[ollama.ChatResponse, None, None]", pieces)


class _ErrorResponse(Exception):
    """An error response, with the headers that the SDK's own exception omits."""

    def __init__(self, response: httpx.Response) -> None:
        super().__init__(response.status_code)
        self.status = response.status_code
        self.headers = response.headers
        try:
            self.body = response.json()
        except ValueError:
            self.body = None


def _raise_for_error(response: httpx.Response) -> None:
    """Event hook for each response, before the SDK reads it."""
    if not response.is_success:
        response.read()
        raise _ErrorResponse(response)


def _mapping_errors(
    call: Callable[[], T],
    model: ModelEntry,
    config: BackendConfig,
    begun: Callable[[], bool] = lambda: False,
) -> T:
    """Make a call, with its errors mapped to `InferenceError`.

    Args:
        call: makes the request.
        model: that is called.
        config: of the backend.
        begun: whether a part of the answer has arrived.
    """
    try:
        return call()
    except _ErrorResponse as error:
        raise _mapped(error.body, error.status, error.headers, model) from None
    except ollama.ResponseError as error:  # inside a stream
        raise _mapped({"error": error.error}, None, {}, model) from None
    except httpx.TimeoutException:
        raise BackendUnavailable(f"no answer within {config.timeout_s:.0f} s") from None
    except (httpx.HTTPError, ConnectionError):
        if begun():
            raise BadAnswer("the answer broke off before its end") from None
        raise BackendUnavailable(f"backend {config.name} cannot be reached") from None
    except MALFORMED:
        raise BadAnswer from None


def _mapped(
    body: Any, status: int | None, headers: Mapping[str, Any], model: ModelEntry
) -> InferenceError:
    message = body.get("error") if isinstance(body, Mapping) else None
    if message == _INPUT_TOO_LONG:
        return TooLong()
    if isinstance(message, str):  # llama.cpp's own response, as text in Ollama's
        try:
            body = json.loads(message)
        except ValueError:
            body = None
    return error_for_status(status or code_of(body), error_codes(body), headers, model)


def _refuse_remote_name(model: ModelEntry, config: BackendConfig) -> None:
    if config.locality == "local" and _REMOTE_NAME.fullmatch(model.served_name):
        raise _not_local(model, config)


def _not_local(model: ModelEntry, config: BackendConfig) -> ModelMissing:
    return ModelMissing(
        f"backend {config.name} is declared local, but runs {model.served_name} on remote machines: "
        "use a model that it runs itself, or declare a backend of locality cloud"
    )


def _untagged(name: str) -> str:
    return name.removesuffix(":latest")
