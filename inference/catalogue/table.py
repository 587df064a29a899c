"""The catalogue as a table for readers: which model serves what, where, and what if it is away."""

from __future__ import annotations

from typing import Final

from inference.catalogue.schema import ALL, ORDINARY, Catalogue, ModelEntry

HEADINGS: Final = ("model", "where", "serves", "good enough for", "when it is away")


def rows(catalogue: Catalogue) -> list[tuple[str, ...]]:
    """One row a model, in the catalogue's order; see `HEADINGS`."""
    return [
        (
            f"{model.name}{_size(model)}",
            _where(catalogue, model),
            ", ".join(model.kinds),
            _tasks(model),
            _away(catalogue, model),
        )
        for model in catalogue.models
    ]


def markdown(catalogue: Catalogue) -> str:
    """The table, as the README has it."""
    lines = [HEADINGS, tuple("---" for _ in HEADINGS), *rows(catalogue)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _size(model: ModelEntry) -> str:
    told = " ".join(part for part in (model.parameters, model.quantization) if part)
    return f" ({told})" if told else ""


def _where(catalogue: Catalogue, model: ModelEntry) -> str:
    backend = catalogue.backend(model.backend)
    place = "at home" if backend.locality == "local" else "cloud"
    return f"{place}, {backend.name}{'' if backend.enabled else ' (once named)'}"


def _tasks(model: ModelEntry) -> str:
    if model.tasks == ALL:
        return "all tasks"
    if model.tasks == ORDINARY:
        return "ordinary tasks"
    return ", ".join(model.tasks)


def _away(catalogue: Catalogue, model: ModelEntry) -> str:
    """What happens meanwhile to the jobs that it would serve."""
    if model.tasks == ALL:
        return "demanding tasks wait, the next serves the others"
    waits = [
        kind
        for kind in model.kinds
        # An index is of one model: what it would have embedded is never another's.
        if kind == "embedding"
        or not any(
            kind in other.kinds and _covers(catalogue, other, model)
            for other in catalogue.models
            if other is not model
        )
    ]
    if not waits:
        return "the next serves"
    if len(waits) == len(model.kinds):
        return "waits"
    return f"{' and '.join(waits)} waits, the next serves the rest"


def _covers(catalogue: Catalogue, other: ModelEntry, model: ModelEntry) -> bool:
    """Whether another is good enough for what this one serves, at least where it is ordinary."""
    if isinstance(model.tasks, tuple):
        home = (
            catalogue.backend(other.backend).locality == catalogue.backend(model.backend).locality
        )
        return home and all(catalogue.adequate(other, task) for task in model.tasks)
    return other.tasks in {ALL, ORDINARY}


if __name__ == "__main__":
    from inference.catalogue.loader import load

    print(markdown(load()))  # noqa: T201 - for whoever changed the catalogue
