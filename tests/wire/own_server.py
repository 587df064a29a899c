"""A FastAPI server of one's own, as docs/models.md has it: embeddings, and reranking."""

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


class Own:
    """The application, and what it was asked. `spoil` changes its answers on the way out."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.spoil: Any = lambda answer: answer
        self.url = ""
        self._echo = EchoModel(f"echo-{DIMENSION}")
        self.app = FastAPI()
        self.app.post("/v1/embeddings")(self.embeddings)
        self.app.post("/v1/rerank")(self.rerank)

    def embeddings(self, body: dict[str, Any]) -> Any:
        """OpenAI's; in base64 where that is asked for."""
        self.asked.append(body)
        if any(len(text) > 1000 for text in body["input"]):
            raise HTTPException(400, {"code": "context_length_exceeded"})
        rows = 2 * self._echo.embed(body["input"])
        if body["encoding_format"] == "base64":
            vectors: list[Any] = [base64.b64encode(row.tobytes()).decode() for row in rows]
        else:
            vectors = rows.tolist()
        data = [{"object": "embedding", "index": n, "embedding": v} for n, v in enumerate(vectors)]
        # The order is not the input's: `index` says which is which.
        return self.spoil({"object": "list", "model": body["model"], "data": data[::-1],
                           "usage": {"prompt_tokens": 1, "total_tokens": 1}})  # fmt: skip

    def rerank(self, body: dict[str, Any]) -> Any:
        """Jina's: the more words of the query a document has, the better."""
        self.asked.append(body)
        words = set(body["query"].split())
        scores = [len(words & set(document.split())) for document in body["documents"]]
        order = sorted(range(len(scores)), key=lambda n: -scores[n])
        return self.spoil({"results": [{"index": n, "relevance_score": scores[n]} for n in order]})


@contextmanager
def own_server() -> Iterator[Own]:
    """Serve on a free port of loopback."""
    own = Own()
    server = uvicorn.Server(uvicorn.Config(own.app, port=0, log_level="critical"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    assert not port_is_free(port)
    own.url = f"http://127.0.0.1:{port}/v1"
    try:
        yield own
    finally:
        server.should_exit = True
        thread.join(10)
