"""The handler of each kind. A new kind is one module beside this one and one line here."""

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
from vestry.lanes import KINDS, Kind, Pool


def handlers(
    router: Router, pool: Pool, spaces: Spaces, embedding: str | None
) -> Mapping[Kind, Handler]:
    """Kind to handler, for the kinds that a pool runs; the cloud pool runs those of the GPU pool.

    Args:
        router: this process's Router.
        pool: the pool of this process's lanes.
        spaces: declares embedding spaces.
        embedding: embedding model for jobs that name none.
    """
    every: dict[Kind, Handler] = {
        "embedding": RoutedEmbedding(router, spaces, embedding),
        "classification": ClassificationHandler(router),
        "rerank": RerankHandler(router),
        "generation": GenerationHandler(router),
        "ocr": OcrHandler(router),
    }
    local = Pool.GPU if pool is Pool.CLOUD else pool
    return MappingProxyType({kind: every[kind] for kind in every if KINDS[kind] is local})
