"""The catalogue as a table for the README: where each model runs, what it serves, and its fallback."""

from __future__ import annotations

from typing import Final

from inference.catalogue.schema import ALL, ORDINARY, Catalogue, ModelEntry

HEADINGS: Final = ("model", "where", "serves", "good enough for", "while unavailable")


def rows(catalogue: Catalogue) -> list[tuple[str, ...]]:
    """One row per model, in the catalogue's order; see `HEADINGS`."""
    return [
        (
            f"{model.name}{_size(model)}",
            _where(catalogue, model),
            ", ".join(model.kinds),
            _tasks(model),
            _fallback(catalogue, model),
        )
        for model in catalogue.models
    ]


def markdown(catalogue: Catalogue) -> str:
    """The table, as the README has it."""
    lines = [HEADINGS, tuple("---" for _ in HEADINGS), *rows(catalogue)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _size(model: ModelEntry) -> str:
    size = " ".join(part for part in (model.parameters, model.quantization) if part)
    return f" ({size})" if size else ""


def _where(catalogue: Catalogue, model: ModelEntry) -> str:
    backend = catalogue.backend(model.backend)
    return f"{backend.locality}, {backend.name}{'' if backend.enabled else ' (if enabled)'}"


def _tasks(model: ModelEntry) -> str:
    if model.tasks == ALL:
        return "all tasks"
    if model.tasks == ORDINARY:
        return "ordinary tasks"
    return ", ".join(model.tasks)


def _fallback(catalogue: Catalogue, model: ModelEntry) -> str:
    """Fallback for a model's jobs while it is unavailable."""
    if model.tasks == ALL:
        return "demanding tasks wait, others are served by the next model"
    waits = [
        kind
        for kind in model.kinds
        # Vectors of one model only are in an index: no other model embeds for it.
        if kind == "embedding"
        or not any(
            kind in other.kinds and _covers(catalogue, other, model)
            for other in catalogue.models
            if other is not model
        )
    ]
    if not waits:
        return "served by the next model"
    if len(waits) == len(model.kinds):
        return "waits"
    return f"{' and '.join(waits)} waits, other kinds are served by the next model"


def _covers(catalogue: Catalogue, other: ModelEntry, model: ModelEntry) -> bool:
    """Whether another model is good enough for a model's tasks, at least the ordinary ones."""
    if isinstance(model.tasks, tuple):
        same_locality = (
            catalogue.backend(other.backend).locality == catalogue.backend(model.backend).locality
        )
        return same_locality and all(catalogue.adequate(other, task) for task in model.tasks)
    return other.tasks in {ALL, ORDINARY}


if __name__ == "__main__":
    from inference.catalogue.loader import load

    print(markdown(load()))  # noqa: T201 - for the README
