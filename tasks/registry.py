"""Which handler runs which kind. A new kind is one module beside this one and one line here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from inference.routing.router import Router
from tasks.classification import ClassificationHandler
from tasks.embedding import RoutedEmbedding, Spaces
from tasks.generation import GenerationHandler
from tasks.ocr import OcrHandler
from tasks.protocol import Handler
from tasks.rerank import RerankHandler
from vestry.lanes import Kind, Pool


def handlers(
    router: Router, pool: Pool, spaces: Spaces, embedding: str | None
) -> Mapping[Kind, Handler]:
    """Kind name to handler, for the kinds that a pool runs.

    Args:
        router: of this process.
        pool: whose lanes it serves.
        spaces: declares embedding spaces.
        embedding: the model that embeds where a job names none.
    """
    if pool is Pool.CPU:
        return MappingProxyType({"ocr": OcrHandler(router)})
    return MappingProxyType(
        {
            "embedding": RoutedEmbedding(router, spaces, embedding),
            "classification": ClassificationHandler(router),
            "rerank": RerankHandler(router),
            "generation": GenerationHandler(router),
        }
    )
