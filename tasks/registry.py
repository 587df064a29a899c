"""Which handler runs which kind. A new kind is one module beside this one and one line here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from inference.protocol import EmbeddingModel
from tasks import embedding
from tasks.protocol import Handler


def handlers(backend: EmbeddingModel, space_id: int) -> Mapping[str, Handler]:
    """Kind name to handler, for one worker process.

    Args:
        backend: the process's embedding backend.
        space_id: the row of its space, from `vestry.ensure_space_v1`.
    """
    return MappingProxyType({embedding.KIND: embedding.EmbeddingHandler(backend, space_id)})
