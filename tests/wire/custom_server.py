"""A custom FastAPI server as in docs/models.md: embeddings and reranking."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException

from inference.backends.echo import EchoModel
from workers.home import port_is_free

DIMENSION = 48


class CustomServer:
    """The application and its requests. `change_response` is applied to each response."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.change_response: Any = lambda response: response
        self.url = ""
        self._echo = EchoModel(f"echo-{DIMENSION}")
        self.app = FastAPI()
        self.app.post("/v1/embeddings")(self.embeddings)
        self.app.post("/v1/rerank")(self.rerank)

    def embeddings(self, body: dict[str, Any]) -> Any:
        """OpenAI's endpoint, with base64 on request."""
        self.requests.append(body)
        if any(len(text) > 1000 for text in body["input"]):
            raise HTTPException(400, {"code": "context_length_exceeded"})
        rows = 2 * self._echo.embed(body["input"])
        if body["encoding_format"] == "base64":
            vectors: list[Any] = [base64.b64encode(row.tobytes()).decode() for row in rows]
        else:
            vectors = rows.tolist()
        data = [{"object": "embedding", "index": n, "embedding": v} for n, v in enumerate(vectors)]
        # Not in the order of the input: `index` is the input's position.
        return self.change_response({"object": "list", "model": body["model"], "data": data[::-1],
                           "usage": {"prompt_tokens": 1, "total_tokens": 1}})  # fmt: skip

    def rerank(self, body: dict[str, Any]) -> Any:
        """Jina's endpoint: the score is the number of the query's words in a document."""
        self.requests.append(body)
        words = set(body["query"].split())
        scores = [len(words & set(document.split())) for document in body["documents"]]
        order = sorted(range(len(scores)), key=lambda n: -scores[n])
        return self.change_response(
            {"results": [{"index": n, "relevance_score": scores[n]} for n in order]}
        )


@contextmanager
def custom_server() -> Iterator[CustomServer]:
    """Serve on a free port of loopback."""
    custom = CustomServer()
    server = uvicorn.Server(uvicorn.Config(custom.app, port=0, log_level="critical"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    assert not port_is_free(port)
    custom.url = f"http://127.0.0.1:{port}/v1"
    try:
        yield custom
    finally:
        server.should_exit = True
        thread.join(10)
