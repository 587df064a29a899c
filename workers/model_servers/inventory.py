"""Which of the catalogue's models can be used here: their backends are asked, their sizes compared.

For `vestry models` and `vestry doctor`, which know what this process's environment says, and what a
stack that runs here wrote down.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil
from pydantic import ValidationError

from inference.catalogue.loader import CatalogueError, load
from inference.catalogue.schema import BackendEntry, Catalogue, ModelEntry
from inference.errors import InferenceError
from inference.protocol import BackendProbe
from inference.remote.egress import probing
from inference.remote.local_network import is_own
from inference.routing.model_registry import ModelRegistry, configuration
from workers.home import read_json
from workers.settings import Settings

MAX_PARALLEL_PROBES: Final = 8


@dataclass(frozen=True, slots=True)
class BackendState:
    """One backend, as it is now.

    Attributes:
        entry: with its URL as it is in use.
        enabled: workers here use it.
        asked_for: because somebody said so, not because the catalogue does or it was found.
        probe: what it answered; None where it is not enabled, and was not asked.
    """

    entry: BackendEntry
    enabled: bool
    asked_for: bool
    probe: BackendProbe | None

    @property
    def reachable(self) -> bool:
        """Whether it answers."""
        return self.probe is not None and self.probe.reachable


@dataclass(frozen=True, slots=True)
class ModelState:
    """One model, as it is now. What cannot be told is None.

    Attributes:
        present: its backend has it.
        needs: bytes of memory, loaded.
        fits: the memory of its device is as large.
    """

    entry: ModelEntry
    backend: BackendState
    present: bool | None
    needs: int | None
    fits: bool | None

    @property
    def ready(self) -> bool:
        """Whether jobs may count on it."""
        return self.backend.reachable and self.present is not False and self.fits is not False


@dataclass(frozen=True, slots=True)
class ModelInventory:
    """Everything that was found."""

    backends: tuple[BackendState, ...]
    models: tuple[ModelState, ...]
    memory: Memory


class InventoryError(Exception):
    """Settings or catalogue cannot be used; the message names what is wrong."""


def load_settings() -> tuple[Settings, Catalogue]:
    """What this process's environment says.

    Raises:
        CannotLook: it cannot be used.
    """
    try:
        settings = Settings()
        return settings, load(settings.catalogue)
    except CatalogueError as error:
        raise InventoryError(str(error)) from None
    except ValidationError as error:
        faults = [
            f"VESTRY_{str(fault['loc'][0]).upper()}" if fault["loc"] else fault["msg"]
            for fault in error.errors()
        ]
        raise InventoryError(f"the settings cannot be used: {', '.join(faults)}") from None


def probe_all(settings: Settings, declared: Catalogue, stack: Mapping[str, Any]) -> ModelInventory:
    """Ask every enabled backend, all at the same time.

    Args:
        settings: of this process.
        declared: the whole catalogue.
        stack: `models` of the client file of a stack that runs here; empty where none does.

    Raises:
        CannotLook: the settings name a backend that there is not.
    """
    known = {entry.name for entry in declared.backends}
    urls: dict[str, str | None] = {**stack.get("backends", {}), **settings.backends}
    if unknown := settings.backends.keys() - known:
        there = ", ".join(sorted(known))
        raise InventoryError(
            f"VESTRY_BACKENDS: there is no backend {min(unknown)}; there are: {there}"
        )
    asked = (set(urls) - set(stack.get("found", ()))) | set(settings.backends)
    enabled: dict[str, str | None] = {e.name: None for e in declared.backends if e.enabled}
    enabled |= {name: url for name, url in urls.items() if name in known}
    catalogue = declared.only(enabled)
    probes = _probes(catalogue, {**stack.get("keys", {}), **settings.backend_keys})
    states = {
        entry.name: BackendState(
            catalogue.backend(entry.name) if entry.name in enabled else entry,
            enabled=entry.name in enabled,
            asked_for=entry.name in asked,
            probe=probes.get(entry.name),
        )
        for entry in declared.backends
    }
    room = model_memory(settings.device)
    models = tuple(_model(entry, states[entry.backend], room) for entry in declared.models)
    return ModelInventory(tuple(states.values()), models, room)


def running_stack(home: Path) -> Mapping[str, Any]:
    """What a stack that runs in a home says of model servers; empty where none does."""
    found = read_json(home / "client.json").get("models")
    return found if isinstance(found, Mapping) else {}


def _probes(catalogue: Catalogue, key_files: Mapping[str, str]) -> dict[str, BackendProbe]:
    keys: dict[str, str] = {}
    found: dict[str, BackendProbe] = {}
    for entry in catalogue.backends:
        if not entry.key:
            continue
        try:
            keys[entry.name] = Path(key_files[entry.name]).read_text(encoding="utf-8").strip()
        except (KeyError, OSError, UnicodeDecodeError):
            told = f"no key: VESTRY_BACKEND_KEYS={entry.name}=FILE names its file"
            found[entry.name] = BackendProbe(reachable=False, models=None, detail=told)
    fleet = ModelRegistry(catalogue, configuration(keys, {}, local_networks=None))

    def ask(name: str) -> BackendProbe:
        try:
            with probing():
                return fleet.backend(name).probe()
        except InferenceError as error:
            return BackendProbe(reachable=False, models=None, detail=str(error))

    rest = [entry.name for entry in catalogue.backends if entry.name not in found]
    try:
        with ThreadPoolExecutor(MAX_PARALLEL_PROBES) as threads:
            found.update(zip(rest, threads.map(ask, rest), strict=True))
    finally:
        fleet.close()
    return found


def _model(entry: ModelEntry, backend: BackendState, room: Memory) -> ModelState:
    probe = backend.probe
    present = None
    if probe is not None and probe.models is not None:
        present = entry.served_name in probe.models
    weights = entry.weight_bytes if backend.entry.locality == "local" else None
    needs = None if weights is None else int(weights * OVERHEAD)
    here = backend.entry.url is None or is_own(backend.entry.url)
    fits = needs <= room.total if needs is not None and here else None
    return ModelState(entry, backend, present, needs, fits)


# How much memory models have: the graphics card's where they run on one, else the machine's.

OVERHEAD: Final = 1.2
"""What a loaded model takes for each byte of its weights: buffers, and a context of some thousand
tokens. A long context takes more."""
_NVIDIA_SMI_TIMEOUT_S: Final = 5.0
_MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes in all, and those that are free now. `of` says of what."""

    of: str
    total: int
    free: int


def model_memory(device: str, cards: Callable[[], str | None] | None = None) -> Memory:
    """The memory of what models compute on.

    Args:
        device: VESTRY_DEVICE.
        cards: what `nvidia-smi` prints, a line a card; None where there is none.
    """
    told = (cards or _nvidia_cards)() if device == "auto" or device.startswith("cuda") else None
    if told:
        number = device.partition(":")[2]
        lines = told.strip().splitlines()
        line = lines[int(number)] if number.isdecimal() and int(number) < len(lines) else lines[0]
        try:
            total, free = (int(part) * _MIB for part in line.split(","))
        except ValueError:
            pass
        else:
            return Memory("graphics card", total, free)
    system = psutil.virtual_memory()
    return Memory("machine", system.total, system.available)


def _nvidia_cards() -> str | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            query, capture_output=True, text=True, timeout=_NVIDIA_SMI_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None
