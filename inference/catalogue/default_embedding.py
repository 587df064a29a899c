"""The default embedding model of a process: the settings take precedence over the catalogue's order."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from inference.catalogue.schema import BackendEntry, Catalogue, ModelEntry
from inference.device.model_files import locate

ECHO: Final = "echo"
SENTENCE_TRANSFORMERS: Final = "sentence-transformers"


def choose(catalogue: Catalogue, backend: str, model: str) -> Catalogue:
    """The catalogue with the configured embedding model before all others.

    Args:
        catalogue: as declared in the file.
        backend: VESTRY_EMBEDDING_BACKEND: `sentence-transformers`, `echo`, or the dotted name of a
            runtime module used in place of the echo backend.
        model: VESTRY_EMBEDDING_MODEL: a catalogue's name, a directory or a hub name; empty for the
            first embedding model of the catalogue.

    Raises:
        ModelMissing: it is not on this machine.
    """
    if backend != SENTENCE_TRANSFORMERS:
        echo = BackendEntry(name=ECHO, runtime=backend, locality="local", about="a fake, for tests")
        name = model or ECHO
        kinds = ("embedding", "classification", "rerank", "generation")
        return catalogue.adding(echo, ModelEntry(name=name, backend=ECHO, kinds=kinds))
    if not model:
        return catalogue
    entry = next((one for one in catalogue.models if one.name == model), None)
    if entry is None:
        files = locate(model)
        name = re.sub(r"[^A-Za-z0-9._:/+-]+", "-", files.name).strip("-")
        path = Path(model).expanduser()
        entry = ModelEntry(
            name=name,
            backend=SENTENCE_TRANSFORMERS,
            kinds=("embedding", "classification", "rerank"),
            served_as=str(path) if path.is_dir() else model,
            resident=True,
        )
    return catalogue.adding(None, entry)


def default_embedding(catalogue: Catalogue) -> ModelEntry | None:
    """The embedding model of jobs that name none: the first that is enabled and local."""
    local = {entry.name for entry in catalogue.backends if entry.locality == "local"}
    return next(
        (m for m in catalogue.models if "embedding" in m.kinds and m.backend in local), None
    )
