"""The embedding backends by name. Each is imported when it is asked for, not before."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from inference.errors import ModelMissing

if TYPE_CHECKING:
    from inference.protocol import EmbeddingModel


def _sentence_transformers(model: str | None, device: str, threads: int | None) -> EmbeddingModel:
    from inference.backends.sentence_transformers_local import (  # noqa: PLC0415 - it brings numpy
        SentenceTransformersBackend,
    )

    return SentenceTransformersBackend(model, device=device, threads=threads)


def _echo(model: str | None, _device: str, _threads: int | None) -> EmbeddingModel:
    from inference.backends.echo import EchoBackend  # noqa: PLC0415 - it brings numpy

    return EchoBackend(model)


_EMBEDDING: Final[dict[str, Callable[[str | None, str, int | None], EmbeddingModel]]] = {
    "sentence-transformers": _sentence_transformers,
    "echo": _echo,
}
EMBEDDING_BACKENDS: Final = tuple(_EMBEDDING)
"""The values of VESTRY_EMBEDDING_BACKEND."""


def embedding_backend(
    backend: str = "sentence-transformers",
    *,
    model: str | None = None,
    device: str = "auto",
    threads: int | None = None,
) -> EmbeddingModel:
    """Load the embedding model that the settings name.

    Args:
        backend: VESTRY_EMBEDDING_BACKEND.
        model: VESTRY_EMBEDDING_MODEL; None for the backend's own default.
        device: VESTRY_DEVICE.
        threads: VESTRY_THREADS; None for the physical cores.

    Raises:
        ModelMissing: no such backend, or it has no such model.
        DeviceMissing: no such device.
    """
    make = _EMBEDDING.get(backend)
    if make is None:
        raise ModelMissing(
            f"VESTRY_EMBEDDING_BACKEND={backend!r} is not known; there is: "
            + ", ".join(EMBEDDING_BACKENDS)
        )
    return make(model or None, device, threads)
