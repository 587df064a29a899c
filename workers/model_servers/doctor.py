"""Checks of `vestry doctor` on model servers and models: reachable, present, large enough memory."""

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
    """Check the catalogue, each enabled backend and each model."""
    try:
        inventory = probe_all(*load_settings(), running_stack(default_home()))
    except InventoryError as error:
        yield Check("catalogue", False, str(error))
        return
    yield from checks_for(inventory)


def checks_for(inventory: ModelInventory) -> Iterator[Check]:
    """Checks of an inventory; only a backend or model that was configured and cannot work fails."""
    for backend in inventory.backends:
        if backend.enabled:
            yield _backend(backend, [m for m in inventory.models if m.backend is backend])
    for model in inventory.models:
        yield _model(model, inventory.memory)


def _backend(backend: BackendState, models: list[ModelState]) -> Check:
    name = f"backend {backend.entry.name}"
    where = f"{backend.entry.url} " if backend.entry.url else ""
    detail = backend.probe.detail if backend.probe else ""
    if not backend.reachable:
        return Check(name, not backend.configured, f"{where}{detail}")
    if models and all(model.present is False for model in models):
        return Check(
            name, not backend.configured, f"{where}answers, and has none of the catalogue's models"
        )
    return Check(name, True, f"{where}{detail}")


def _model(model: ModelState, memory: Memory) -> Check:
    name = f"model {model.entry.name}"
    size = "" if model.needs is None else f"; about {model.needs / GB:.1f} GB"
    if model.fits is False:
        # A model that is absent fails no check; one that is present and does not fit does.
        larger = f"larger than the {memory.of}'s {memory.total / GB:.1f} GB"
        return Check(name, not (model.present and model.backend.enabled), f"{larger}{size}")
    if model.fits and model.needs is not None and model.needs > memory.free:
        size += f", and {memory.free / GB:.1f} GB are free now"
    where = f"on {model.backend.entry.name}"
    if model.ready:
        return Check(name, True, f"{where}{size}")
    if not model.backend.enabled:
        state = f"{where}, which is not enabled"
    elif not model.backend.reachable:
        state = f"{where}, which is unreachable"
    else:
        state = f"not {where}"
    get = f"; to get it: {model.entry.get}" if model.entry.get else ""
    return Check(name, True, f"{state}{size}{get}")
