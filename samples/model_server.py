"""A model server of one's own: FastAPI around sentence-transformers, in the protocols Vestry speaks.

Started as docs/models.md says, with EMBEDDING_MODEL and RERANK_MODEL naming directories or hub names.
Texts that are too long are refused, not cut.
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
    """As OpenAI's API has it. `model` is not looked at: there is one."""

    input: list[str]


class RerankRequest(BaseModel):
    """As Jina's API has it, which llama.cpp and vLLM serve too."""

    query: str
    documents: list[str]


@app.get("/v1/models")
def models() -> dict[str, Any]:
    """What `vestry doctor` asks."""
    served = {"embedding": embedder, "rerank": reranker}
    return {"data": [{"id": name} for name, model in served.items() if model is not None]}


@app.post("/v1/embeddings")
def embeddings(request: EmbeddingRequest) -> dict[str, Any]:
    """Vectors, in the order of the texts."""
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


def _check(tokenizer: Any, inputs: list[Any], longest: int) -> None:
    """Refuse what the model would silently cut, by the code that Vestry knows."""
    lengths = [len(ids) for ids in tokenizer(inputs, truncation=False)["input_ids"]]
    if any(length > longest for length in lengths):
        raise HTTPException(400, {"code": "context_length_exceeded"})
