"""Example of a model server: FastAPI around sentence-transformers, with the protocols Vestry uses.

docs/models.md describes how to start it. EMBEDDING_MODEL and RERANK_MODEL are directories or hub names
of models. A text that is too long is refused, not truncated.
"""

from __future__ import annotations

import os
from typing import Any

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel
from sentence_transformers import CrossEncoder, SentenceTransformer

app = FastAPI()
embedder = SentenceTransformer(path) if (path := os.environ.get("EMBEDDING_MODEL")) else None
reranker = CrossEncoder(path) if (path := os.environ.get("RERANK_MODEL")) else None


class EmbeddingRequest(BaseModel):
    """Request of OpenAI's embeddings API. `model` is ignored: the server has one."""

    input: list[str]


class RerankRequest(BaseModel):
    """Request of Jina's rerank API, which llama.cpp and vLLM also have."""

    query: str
    documents: list[str]


@app.get("/v1/models")
def models() -> dict[str, Any]:
    """The models of the server; `vestry doctor` reads them."""
    served = {"embedding": embedder, "rerank": reranker}
    return {"data": [{"id": name} for name, model in served.items() if model is not None]}


@app.post("/v1/embeddings")
def embeddings(request: EmbeddingRequest) -> dict[str, Any]:
    """A vector for each text, in the order of the texts."""
    if embedder is None:
        raise HTTPException(501, "EMBEDDING_MODEL is not set")
    _check(embedder.tokenizer, request.input, int(embedder.max_seq_length))
    vectors = embedder.encode(request.input, normalize_embeddings=True).tolist()
    return {"data": [{"index": n, "embedding": vector} for n, vector in enumerate(vectors)]}


@app.post("/v1/rerank")
def rerank(request: RerankRequest) -> dict[str, Any]:
    """A score for each document; higher is better."""
    if reranker is None:
        raise HTTPException(501, "RERANK_MODEL is not set")
    pairs = [(request.query, document) for document in request.documents]
    _check(reranker.tokenizer, pairs, int(reranker.max_seq_length))
    scores = reranker.predict(pairs).tolist()
    return {"results": [{"index": n, "relevance_score": score} for n, score in enumerate(scores)]}


def _check(tokenizer: Any, inputs: list[Any], max_tokens: int) -> None:
    """Refuse inputs that the model would truncate, with the error code that Vestry recognises."""
    lengths = [len(ids) for ids in tokenizer(inputs, truncation=False)["input_ids"]]
    if any(length > max_tokens for length in lengths):
        raise HTTPException(400, {"code": "context_length_exceeded"})
