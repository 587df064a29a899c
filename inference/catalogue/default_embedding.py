"""Which embedding model a process uses by default: the settings' word over the catalogue's order."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from inference.catalogue.schema import BackendEntry, Catalogue, ModelEntry
from inference.device.model_files import locate

ECHO: Final = "echo"
SENTENCE_TRANSFORMERS: Final = "sentence-transformers"


def choose(catalogue: Catalogue, backend: str, model: str) -> Catalogue:
    """The catalogue with the model that the settings name before all others.

    Args:
        catalogue: as it is declared.
        backend: VESTRY_EMBEDDING_BACKEND.
        model: VESTRY_EMBEDDING_MODEL: a catalogue's name, a directory or a hub name; empty for the
            first that the catalogue has.

    Raises:
        ModelMissing: it is not on this machine.
    """
    if backend == ECHO:
        fake = BackendEntry(name=ECHO, runtime=ECHO, locality="local", about="a fake, for tests")
        name = model or ECHO
        kinds = ("embedding", "classification", "rerank", "generation")
        return catalogue.adding(fake, ModelEntry(name=name, backend=ECHO, kinds=kinds))
    if not model:
        return catalogue
    known = next((entry for entry in catalogue.models if entry.name == model), None)
    if known is None:
        files = locate(model)
        name = re.sub(r"[^A-Za-z0-9._:/+-]+", "-", files.name).strip("-")
        known = ModelEntry(
            name=name,
            backend=SENTENCE_TRANSFORMERS,
            kinds=("embedding", "classification", "rerank"),
            served_as=str(Path(model).expanduser()) if Path(model).expanduser().is_dir() else model,
            resident=True,
        )
    return catalogue.adding(None, known)


def default_embedding(catalogue: Catalogue) -> ModelEntry | None:
    """The model that embeds where a job names none: the first that is enabled, and local."""
    local = {entry.name for entry in catalogue.backends if entry.locality == "local"}
    return next(
        (m for m in catalogue.models if "embedding" in m.kinds and m.backend in local), None
    )
