"""What `vestry doctor` tells of models: which can be used, which fit, and how to get the others."""

from __future__ import annotations

from collections.abc import Iterator

from vestry.cli.doctor.checks import Check
from workers.home import default_home
from workers.model_servers.inventory import (
    BackendState,
    InventoryError,
    Memory,
    ModelInventory,
    ModelState,
    load_settings,
    probe_all,
    running_stack,
)

GB = 1_000_000_000


def checks() -> Iterator[Check]:
    """The catalogue, each backend that is in use, and each model."""
    try:
        found = probe_all(*load_settings(), running_stack(default_home()))
    except InventoryError as error:
        yield Check("catalogue", False, str(error))
        return
    yield from checks_for(found)


def checks_for(found: ModelInventory) -> Iterator[Check]:
    """Not content only where what somebody asked for cannot work."""
    for backend in found.backends:
        if backend.enabled:
            yield _backend(backend, [m for m in found.models if m.backend is backend])
    for model in found.models:
        yield _model(model, found.memory)


def _backend(backend: BackendState, models: list[ModelState]) -> Check:
    name = f"backend {backend.entry.name}"
    where = f"{backend.entry.url} " if backend.entry.url else ""
    detail = backend.probe.detail if backend.probe else ""
    if not backend.reachable:
        return Check(name, not backend.asked_for, f"{where}{detail}")
    if models and all(model.present is False for model in models):
        return Check(
            name, not backend.asked_for, f"{where}answers, and has none of the catalogue's models"
        )
    return Check(name, True, f"{where}{detail}")


def _model(model: ModelState, room: Memory) -> Check:
    name = f"model {model.entry.name}"
    size = "" if model.needs is None else f"; about {model.needs / GB:.1f} GB"
    if model.fits is False:
        # What is not here bothers nobody; what is here, and does not fit, will fail.
        larger = f"larger than the {room.of}'s {room.total / GB:.1f} GB"
        return Check(name, not (model.present and model.backend.enabled), f"{larger}{size}")
    if model.fits and model.needs is not None and model.needs > room.free:
        size += f", and {room.free / GB:.1f} GB are free now"
    where = f"on {model.backend.entry.name}"
    if model.ready:
        return Check(name, True, f"{where}{size}")
    if not model.backend.enabled:
        state = f"{where}, which is not in use"
    elif not model.backend.reachable:
        state = f"{where}, which cannot be used"
    else:
        state = f"not {where}"
    get = f"; to get it: {model.entry.get}" if model.entry.get else ""
    return Check(name, True, f"{state}{size}{get}")
