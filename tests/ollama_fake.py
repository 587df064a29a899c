"""A fake Ollama: its protocol in front of a real llama.cpp server, which generates.

The echo backend embeds texts of up to `MAX_WORDS` words. A pull adds a model. A model may be declared
remote, as those of Ollama's cloud are.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import urlsplit

from inference.backends.echo import EchoModel
from tests.llama_server import Llama

VERSION = "0.40.2"
MAX_WORDS = 300
DIMENSION = 64
Response = tuple[int, Iterator[dict[str, Any]]]


class FakeOllama:
    """See the module's docstring.

    Args:
        llama: server that generates; None for no chat.
        models: names with tags; each with the fields that /api/show adds.
    """

    def __init__(self, llama: Llama | None, models: Mapping[str, Mapping[str, Any]]) -> None:
        self.models = dict(models)
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self._llama = llama
        self._echo = EchoModel(f"echo-{DIMENSION}")

    def __enter__(self) -> Self:
        handler = type("Handler", (_Handler,), {"owner": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        """Base URL."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def bodies(self, path: str) -> list[dict[str, Any]]:
        """The bodies of the requests to a path."""
        return [body for requested, body in list(self.requests) if requested == path]

    def respond(self, path: str, body: dict[str, Any]) -> Response:
        """Status and JSON documents of a response."""
        self.requests.append((path, body))
        name = str(body.get("model", ""))
        tagged = (name, f"{name}:latest")
        model = next((self.models[name] for name in tagged if name in self.models), None)
        routes: dict[str, Callable[[], Response]] = {
            "/api/version": lambda: _single({"version": VERSION}),
            "/api/tags": lambda: _single(
                {"models": [self._described(name) for name in self.models]}
            ),
            "/api/pull": lambda: self._pull(name),
        }
        if path in routes:
            return routes[path]()
        if model is None:
            return _single({"error": f"model '{name}' not found"}, 404)
        model_routes: dict[str, Callable[[], Response]] = {
            "/api/show": lambda: _single(
                {"model_info": {}, "capabilities": ["completion"], **model}
            ),
            "/api/embed": lambda: self._embed(body),
            "/api/chat": lambda: self._chat(body),
        }
        return model_routes[path]()

    def _described(self, name: str) -> dict[str, Any]:
        digest = hashlib.sha256(name.encode()).hexdigest()
        return {"name": name, "model": name, "digest": digest, "size": 1000, **self.models[name]}

    def _pull(self, name: str) -> Response:
        if name.startswith("no-such"):
            return 200, iter([{"status": "pulling manifest"},
                              {"error": "pull model manifest: file does not exist"}])  # fmt: skip
        self.models[name] = {}
        steps = [{"status": "pulling manifest"}]
        steps += [{"status": "pulling 4b5c", "total": 100, "completed": n} for n in (0, 50, 100)]
        return 200, iter([*steps, {"status": "success"}])

    def _embed(self, body: dict[str, Any]) -> Response:
        texts = body["input"]
        if any(len(text.split()) > MAX_WORDS for text in texts) and not body["truncate"]:
            return _single({"error": "the input length exceeds the context length"}, 400)
        vectors = self._echo.embed([" ".join(text.split()[:200]) for text in texts])
        return _single({"model": body["model"], "embeddings": (3 * vectors).tolist()})

    def _chat(self, body: dict[str, Any]) -> Response:
        common = {"model": body["model"], "created_at": "2026-11-01T00:00:00Z"}
        if not body["messages"]:
            message = {"role": "assistant", "content": ""}
            return _single({**common, "message": message, "done": True, "done_reason": "load"})
        assert self._llama is not None
        options = body.get("options", {})
        request = {
            "model": "any", "messages": body["messages"], "stream": True,
            "stream_options": {"include_usage": True}, "max_tokens": options.get("num_predict"),
            **{n: options[n] for n in ("temperature", "top_k", "seed", "stop") if n in options},
        }  # fmt: skip
        if body.get("format"):
            schema = {"name": "answer", "schema": body["format"]}
            request["response_format"] = {"type": "json_schema", "json_schema": schema}
        url = urlsplit(self._llama.url)
        connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=60)
        headers = {"authorization": f"Bearer {self._llama.key}", "content-type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(request), headers)
        response = connection.getresponse()
        if response.status != 200:  # since 0.34 Ollama passes on llama.cpp's error, as text
            return _single({"error": json.dumps(json.loads(response.read()))}, response.status)
        return 200, _as_ollama(response, common)


def _single(document: dict[str, Any], status: int = 200) -> Response:
    return status, iter([document])


def _as_ollama(lines: Any, common: dict[str, Any]) -> Iterator[dict[str, Any]]:
    reason = "stop"
    for line in lines:
        if not line.startswith(b"data: {"):
            continue
        chunk = json.loads(line.removeprefix(b"data: "))
        for choice in chunk["choices"]:
            reason = choice["finish_reason"] or reason
            message = {"role": "assistant", "content": choice["delta"].get("content") or ""}
            yield {**common, "message": message, "done": False}
        if usage := chunk.get("usage"):
            yield {
                **common, "message": {"role": "assistant", "content": ""},
                "done": True, "done_reason": reason,
                "prompt_eval_count": usage["prompt_tokens"], "eval_count": usage["completion_tokens"],
            }  # fmt: skip


class _Handler(BaseHTTPRequestHandler):
    owner: FakeOllama

    def _serve(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        body = json.loads(self.rfile.read(length) or b"{}")
        status, documents = self.owner.respond(self.path, body)
        try:
            self.send_response(status)
            self.send_header(
                "content-type", "application/x-ndjson" if length else "application/json"
            )
            self.end_headers()
            for document in documents:
                self.wfile.write(json.dumps(document).encode() + b"\n")
                self.wfile.flush()
        except OSError:  # the caller has closed the connection
            pass

    do_GET = do_POST = _serve  # noqa: N815 - as the base class has them

    def log_message(self, *_: object) -> None:
        """Log nothing."""
